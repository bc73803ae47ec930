/** The sources of a data set: those to train on and those to evaluate on, and conversions from and to the API. */

import type { Values } from './draft';

export interface Source {
  source_type: 'upload' | 'local_file' | 'huggingface' | 'url';
  dataset_id?: string;
  file_path?: string;
  url?: string;
  repo_id?: string;
  split?: string;
  config_name?: string;
  revision?: string;
  data_files?: string | string[];
  encoding?: string;
}

type Mapping = Record<string, string>;

/** A source with the settings of its own. */
export interface SourceDraft {
  /** Identifies the source while others are added and removed. */
  key: number;
  /** null until one is selected. */
  source: Source | null;
  /** null for the mapping of the data set. */
  mapping: Mapping | null;
  /** '' for the format of the data set. */
  rowFormat: string;
  /** null for the number of the data set. */
  maxSamples: number | null;
  weight: number;
  /** Fields of a loaded configuration that have no input on the page. */
  otherFields: Values;
}

/** A data set to evaluate on. Only one that is alone may have no name. */
export interface EvaluationSet extends SourceDraft {
  name: string;
}

export const SOURCE_ORDERS: [string, string][] = [
  ['interleave', 'Alternating, in proportion to their numbers of pairs'],
  ['concatenate', 'One after the other'],
];

const EVALUATION_NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$/;
const RESERVED_NAMES = ['held_out', 'eval_source'];

/** Return whether both sources have the same fields, in any order. */
export function isSameSource(one: Source | null, other: Source | null): boolean {
  const parts = (source: Source | null): string => JSON.stringify(source && Object.entries(source).filter(([, value]) => value != null).sort());
  return parts(one) === parts(other);
}

/** Return a source without settings of its own. */
export const plainSource = (key: number, source: Source | null = null): SourceDraft => ({ key, source, mapping: null, rowFormat: '', maxSamples: null, weight: 1, otherFields: {} });

/** Return a key that none of the sources has. */
export const nextKey = (sources: SourceDraft[]): number => Math.max(-1, ...sources.map(({ key }) => key)) + 1;

const withoutNulls = (fields: object): Values => Object.fromEntries(Object.entries(fields).filter(([, value]) => value != null));

/** Return the source with only the fields that are set. */
export const cleanSource = (source: object): Source => withoutNulls(source) as unknown as Source;

const hasSettings = ({ mapping, rowFormat, maxSamples, weight, otherFields }: SourceDraft): boolean =>
  mapping !== null || rowFormat !== '' || maxSamples !== null || weight !== 1 || Object.keys(otherFields).length > 0;

function withSettings({ source, mapping, rowFormat, maxSamples, weight, otherFields }: SourceDraft): Values {
  const fields: Values = { ...otherFields, source };
  if (mapping !== null) fields.column_mapping = mapping;
  if (rowFormat) fields.row_format = rowFormat;
  if (maxSamples !== null) fields.max_samples = maxSamples;
  if (weight !== 1) fields.weight = weight;
  return fields;
}

function fromSettings(key: number, settings: Values): SourceDraft {
  const { source, column_mapping, row_format, max_samples, weight, ...otherFields } = withoutNulls(settings);
  return {
    key,
    source: source ? cleanSource(source as object) : null,
    mapping: (column_mapping as Mapping | undefined) ?? null,
    rowFormat: String(row_format ?? ''),
    maxSamples: (max_samples as number | undefined) ?? null,
    weight: (weight as number | undefined) ?? 1,
    otherFields,
  };
}

/** Return the fields of a data set with the sources to train on. */
export function trainingFields(sources: SourceDraft[]): Values {
  const [only, ...further] = sources;
  return only && further.length === 0 && !hasSettings(only) ? { source: only.source } : { sources: sources.map(withSettings) };
}

/** Return the sources to train on of a data set; one that is not selected if it has none. */
export function trainingSources({ source, sources }: { source?: object | null; sources?: Values[] | null }): SourceDraft[] {
  return sources && sources.length > 0 ? sources.map((one, index) => fromSettings(index, one)) : [plainSource(0, source ? cleanSource(source) : null)];
}

/** Return the fields of a data set with the sets to evaluate on. */
export function evaluationFields(sets: EvaluationSet[]): Values {
  const valueOf = (set: EvaluationSet): unknown => (hasSettings(set) ? withSettings(set) : set.source);
  const [only, ...further] = sets;
  if (!only) return {};
  if (further.length === 0 && only.name === '') return { eval_source: valueOf(only) };
  return { eval_sources: Object.fromEntries(sets.map((set) => [set.name, valueOf(set)])) };
}

/** Return the sets to evaluate on of a data set. */
export function evaluationSets({ eval_source, eval_sources }: { eval_source?: Values | null; eval_sources?: Record<string, Values> | null }): EvaluationSet[] {
  const named = [...Object.entries(eval_sources ?? {}), ...(eval_source ? [['', eval_source] as [string, Values]] : [])];
  return named.map(([name, value], key) => ({ ...fromSettings(key, 'source_type' in value ? { source: value } : value), name }));
}

/** Return a name for a further set to evaluate on. */
export function unusedName(sets: EvaluationSet[]): string {
  const names = sets.map(({ name }) => name);
  for (let number = 1; ; number += 1) if (!names.includes(`eval-${number}`)) return `eval-${number}`;
}

/** Return what is wrong with the name of a set to evaluate on; '' if nothing is. */
export function nameProblem(set: EvaluationSet, sets: EvaluationSet[]): string {
  if (set.name === '') return sets.length > 1 ? 'Each of several evaluation sets needs a name.' : '';
  if (!EVALUATION_NAME.test(set.name)) return "Use up to 40 letters, digits, '.', '_' and '-', and begin with a letter or a digit.";
  if (RESERVED_NAMES.includes(set.name)) return `Merlina uses the name ${set.name} itself. Choose another one.`;
  return sets.some((other) => other.key !== set.key && other.name === set.name) ? 'Another evaluation set has this name.' : '';
}

/** Return a short name of a source, such as that of its file. `files` has the names of uploaded files by id. */
export function nameOf(source: Source | null, files: Map<string, string>): string {
  if (source === null) return '';
  if (source.source_type === 'huggingface') return source.repo_id ?? '';
  if (source.source_type === 'upload') return files.get(source.dataset_id ?? '') ?? '';
  return (source.url ?? source.file_path ?? '').split('/').at(-1) ?? '';
}
