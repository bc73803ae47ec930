/** A configuration that is being edited: its parts, and conversions from and to the API's configuration. */

import { DATASET_DEFAULTS, defaultOf } from './fields';
import { evaluationFields, evaluationSets, isSameSource, nameProblem, nextKey, plainSource, trainingFields, trainingSources, unusedName, type EvaluationSet, type Source, type SourceDraft } from './sources';

export type Values = Record<string, unknown>;

export interface DataDraft {
  /** The sources to train on, at least one. */
  sources: SourceDraft[];
  sourceOrder: string;
  evaluationSets: EvaluationSet[];
  /** Mapping of the columns of all sources without one of their own. */
  mapping: Record<string, string>;
  /** Format of the rows of all sources without one of their own; '' for the detected one. */
  rowFormat: string;
  pairsPerRow: string;
  format: string;
  /** Texts of the custom format: system_prefix, system_suffix, user_prefix, … */
  templates: Record<string, string>;
  keepsReasoning: boolean;
  systemAsUser: boolean;
  /** Names of the cleaning options that are on. */
  cleaning: string[];
  /** System message of rows without one; '' for none. */
  defaultSystem: string;
  testSize: number;
  /** Use only this many rows of each source without a number of its own, from the first on; null for all. */
  maxSamples: number | null;
  /** Fields of a loaded configuration that have no input on the page. */
  otherFields: Values;
}

export const CLEANING_OPTIONS: [string, string][] = [
  ['strip', 'Remove whitespace around messages'],
  ['drop_duplicates', 'Drop repeated rows'],
  ['drop_identical_answers', 'Drop rows with the same text as both answers'],
  ['drop_overlong', 'Drop rows longer than the maximum length'],
];

/** Return the form with an option on that a finding names. */
export function withOption(data: DataDraft, option: string): DataDraft {
  return option === 'format.system_as_user' ? { ...data, systemAsUser: true } : { ...data, cleaning: [...data.cleaning, option] };
}

/** Initial values of the form. They suit small data sets better than the API's defaults. */
export const DEFAULT_DATA: DataDraft = { sources: [plainSource(0)], sourceOrder: DATASET_DEFAULTS.source_order, evaluationSets: [], mapping: {}, rowFormat: '', pairsPerRow: 'best_worst', format: 'tokenizer', templates: {}, keepsReasoning: true, systemAsUser: false, cleaning: [], defaultSystem: '', testSize: 0.05, maxSamples: null, otherFields: {} };

/** Return the form with a further source to train on, or a further set to evaluate on. */
export function withFurtherSource(data: DataDraft): DataDraft {
  // The mapping of the data set is that of its first source.
  return { ...data, sources: [...data.sources, { ...plainSource(nextKey(data.sources)), mapping: {} }] };
}
export function withEvaluationSet(data: DataDraft): DataDraft {
  const added = { ...plainSource(nextKey(data.evaluationSets)), name: unusedName(data.evaluationSets) };
  return { ...data, evaluationSets: [...data.evaluationSets, added] };
}

/** Return the form without a source to train on. The settings of a source that remains alone are those of the data set. */
export function withoutSource(data: DataDraft, removed: SourceDraft): DataDraft {
  const remaining = data.sources.filter(({ key }) => key !== removed.key);
  const [first, ...further] = remaining;
  if (!first) return data;
  if (further.length === 0) return { ...data, ...settingsOf(data, first), sources: [{ ...first, mapping: null, rowFormat: '', maxSamples: null, weight: 1 }] };
  if (!isFirst(data, removed)) return { ...data, sources: remaining };
  // The mapping of the data set becomes that of the new first source, and the others keep theirs.
  const kept = further.map((one) => ({ ...one, mapping: settingsOf(data, one).mapping }));
  return { ...data, mapping: settingsOf(data, first).mapping, sources: [{ ...first, mapping: null }, ...kept] };
}

const isFirst = (data: DataDraft, one: SourceDraft): boolean => data.sources[0]?.key === one.key;

/** Return the settings that apply to a source: its own, otherwise those of the data set. */
export function settingsOf(data: DataDraft, one: SourceDraft): Pick<DataDraft, 'mapping' | 'rowFormat' | 'maxSamples'> {
  return { mapping: one.mapping ?? data.mapping, rowFormat: one.rowFormat || data.rowFormat, maxSamples: one.maxSamples ?? data.maxSamples };
}

/** Return the form with a changed source to train on, which is found by its key. */
export function withSource(data: DataDraft, changed: SourceDraft): DataDraft {
  return { ...data, sources: data.sources.map((one) => (one.key === changed.key ? changed : one)) };
}

/** Return the form with another source selected, which resets column mapping and row format. */
export function withSelected(data: DataDraft, one: SourceDraft, source: Source | null): DataDraft {
  if (isSameSource(source, one.source)) return data;
  if (!isFirst(data, one)) return withSource(data, { ...one, source, mapping: {}, rowFormat: '' });
  return { ...withSource(data, { ...one, source, mapping: null, rowFormat: '' }), mapping: {}, rowFormat: '' };
}

/** Return the form with a changed setting of a source: for the first one that of the data set, unless it has its own. */
export function withSetting(data: DataDraft, one: SourceDraft, setting: { mapping: Record<string, string> } | { rowFormat: string }): DataDraft {
  const isOwn = !isFirst(data, one) || ('mapping' in setting ? one.mapping !== null : one.rowFormat !== '');
  return isOwn ? withSource(data, { ...one, ...setting }) : { ...data, ...setting };
}

/** Return the form with one of its sources alone, for a preview. */
export function alone(data: DataDraft, one: SourceDraft): DataDraft {
  return { ...data, ...settingsOf(data, one), sources: [plainSource(one.key, one.source)], evaluationSets: [] };
}

/** Return what has to be entered or corrected before the data set is complete; '' if nothing has. */
export function missingIn({ sources, evaluationSets }: DataDraft): string {
  const source = sources.findIndex((one) => one.source === null);
  if (source >= 0) return sources.length === 1 ? 'Select a data set.' : `Select a data set for source ${source + 1}, or remove it.`;
  const set = evaluationSets.find((one) => one.source === null);
  if (set) return `Select a data set for the evaluation set${set.name ? ` ${set.name}` : ''}, or remove it.`;
  return evaluationSets.some((one) => nameProblem(one, evaluationSets) !== '') ? 'Correct the names of the evaluation sets.' : '';
}

/** Return the data set for the API; null if it is incomplete. `modelName` and `trainingMode` are for previews only: a run has its own. */
export function datasetOf(data: DataDraft, modelName: string, trainingMode?: string): Values | null {
  if (missingIn(data) !== '') return null;
  const mapping = Object.keys(data.mapping).length > 0 ? data.mapping : null;
  const format: Values = { format_type: data.format };
  if (data.format === 'custom') format.custom_templates = data.templates;
  if (!data.keepsReasoning) format.enable_thinking = false;
  if (data.systemAsUser) format.system_as_user = true;
  const sources = { ...trainingFields(data.sources), ...evaluationFields(data.evaluationSets) };
  const dataset: Values = { ...sources, ...data.otherFields, format, test_size: data.testSize, column_mapping: mapping };
  if (data.sourceOrder !== DATASET_DEFAULTS.source_order) dataset.source_order = data.sourceOrder;
  for (const option of data.cleaning) dataset[option] = true;
  if (data.defaultSystem) dataset.default_system = data.defaultSystem;
  if (data.rowFormat) dataset.row_format = data.rowFormat;
  if (data.pairsPerRow !== DATASET_DEFAULTS.pairs_per_row) dataset.pairs_per_row = data.pairsPerRow;
  if (data.maxSamples !== null) dataset.max_samples = data.maxSamples;
  if (modelName) dataset.model_name = modelName;
  if (trainingMode) dataset.training_mode = trainingMode;
  return dataset;
}

/** Return the configuration with changed settings only, which keeps it short; null if model, name or data are missing. */
export function configOf(model: string, name: string, data: DataDraft, values: Values): Values | null {
  const dataset = datasetOf(data, '');
  if (!model || !name || dataset === null) return null;
  return { base_model: model, output_name: name, dataset, ...values };
}

/** Derive a valid output name from the base model. */
export function suggestName(model: string): string {
  const last = model.replace(/\/+$/, '').split('/').at(-1) ?? '';
  const clean = last.replace(/\.gguf$/i, '').replace(/[^A-Za-z0-9._-]+/g, '-').replace(/^[^A-Za-z0-9]+/, '');
  return clean ? `${clean.slice(0, 80)}-tuned` : '';
}

interface DatasetConfig {
  source?: object | null;
  sources?: Values[] | null;
  source_order?: string;
  eval_source?: Values | null;
  eval_sources?: Record<string, Values> | null;
  column_mapping?: Record<string, string> | null;
  row_format?: string | null;
  pairs_per_row?: string;
  format?: { format_type?: string; custom_templates?: Record<string, string> | null; enable_thinking?: boolean; system_as_user?: boolean };
  test_size?: number;
  max_samples?: number | null;
}

/** Fields that have an input, and those that previews set themselves. */
const INPUTS_OF_THEIR_OWN = new Set([...CLEANING_OPTIONS.map(([name]) => name), 'default_system', 'model_name', 'training_mode']);

/** Return the fields that differ from their defaults and have no input on the page. */
function changedFields(fields: Values): Values {
  const defaults = DATASET_DEFAULTS as Values;
  const isChanged = ([name, value]: [string, unknown]): boolean => JSON.stringify(value) !== JSON.stringify(defaults[name] ?? null);
  return Object.fromEntries(Object.entries(fields).filter((field) => isChanged(field) && !INPUTS_OF_THEIR_OWN.has(field[0])));
}

/** Return the parts of the form for a saved configuration or that of an earlier run. */
export function draftFromConfig(config: Values): { model: string; name: string; data: DataDraft; values: Values } {
  const { base_model, output_name, dataset: datasetConfig, ...rest } = config;
  const { source, sources, source_order, eval_source, eval_sources, column_mapping, row_format, pairs_per_row, format, test_size, max_samples, ...otherFields } = (datasetConfig ?? {}) as DatasetConfig & Values;
  const sets = evaluationSets({ eval_source, eval_sources });
  const data: DataDraft = {
    sources: trainingSources({ source, sources }),
    sourceOrder: source_order ?? DATASET_DEFAULTS.source_order,
    evaluationSets: sets,
    mapping: column_mapping ?? {},
    rowFormat: row_format ?? '',
    pairsPerRow: pairs_per_row ?? DATASET_DEFAULTS.pairs_per_row,
    format: format?.format_type ?? DATASET_DEFAULTS.format.format_type,
    templates: format?.custom_templates ?? {},
    keepsReasoning: format?.enable_thinking ?? DATASET_DEFAULTS.format.enable_thinking,
    systemAsUser: format?.system_as_user ?? DATASET_DEFAULTS.format.system_as_user,
    testSize: test_size ?? (sets.length > 0 ? 0 : DATASET_DEFAULTS.test_size),
    maxSamples: max_samples ?? null,
    cleaning: CLEANING_OPTIONS.map(([name]) => name).filter((name) => otherFields[name] === true),
    defaultSystem: String(otherFields.default_system ?? ''),
    otherFields: changedFields(otherFields),
  };
  const changed = Object.entries(rest).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(defaultOf(name, rest) ?? null));
  return { model: String(base_model ?? ''), name: String(output_name ?? ''), data, values: Object.fromEntries(changed) };
}

export const CPU_PRESET: Values = { use_4bit: false, optimizer_type: 'adamw_torch', max_length: 512, lora_r: 16, lora_alpha: 32, learning_rate: 2e-4, gradient_accumulation_steps: 8 };

export const PRESETS: { name: string; help: string; values: Values }[] = [
  { name: 'Defaults', help: 'A good starting point on a GPU.', values: {} },
  { name: 'Quick test', help: '50 steps, to verify the setup.', values: { max_steps: 50, learning_rate: 2e-5 } },
  { name: 'Low memory', help: 'For small GPUs: 4-bit weights, gradient checkpointing, shorter pairs.', values: { use_4bit: true, gradient_checkpointing: true, max_length: 1024, lora_r: 16, lora_alpha: 16 } },
  { name: 'CPU', help: 'For small models on a machine without a GPU.', values: CPU_PRESET },
];
