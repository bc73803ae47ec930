/** A configuration that is being edited: its parts, and conversions from and to the API's configuration. */

import { DATASET_DEFAULTS, defaultOf } from './fields';

export type Values = Record<string, unknown>;

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

/** Return whether both sources have the same fields, in any order. */
export function isSameSource(one: Source | null, other: Source | null): boolean {
  const parts = (source: Source | null): string => JSON.stringify(source && Object.entries(source).filter(([, value]) => value != null).sort());
  return parts(one) === parts(other);
}

export interface DataDraft {
  source: Source | null;
  mapping: Record<string, string>;
  /** Format of the rows; '' for the detected one. */
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
  /** Use only this many rows, from the first on; null for all. */
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
export const DEFAULT_DATA: DataDraft = { source: null, mapping: {}, rowFormat: '', pairsPerRow: 'best_worst', format: 'tokenizer', templates: {}, keepsReasoning: true, systemAsUser: false, cleaning: [], defaultSystem: '', testSize: 0.05, maxSamples: null, otherFields: {} };

/** Return the fields without `sources` if another source than the first of them was selected. */
function fieldsFor(source: Source, fields: Values): Values {
  const { sources, ...others } = fields as Values & { sources?: { source: Source }[] };
  return !sources || isSameSource(sources[0]?.source ?? null, source) ? fields : others;
}

/** Return the data set for the API; null without a source. `modelName` and `trainingMode` are for previews only: a run has its own. */
export function datasetOf(data: DataDraft, modelName: string, trainingMode?: string): Values | null {
  if (data.source === null) return null;
  const mapping = Object.keys(data.mapping).length > 0 ? data.mapping : null;
  const format: Values = { format_type: data.format };
  if (data.format === 'custom') format.custom_templates = data.templates;
  if (!data.keepsReasoning) format.enable_thinking = false;
  if (data.systemAsUser) format.system_as_user = true;
  const dataset: Values = { ...fieldsFor(data.source, data.otherFields), source: data.source, format, test_size: data.testSize, column_mapping: mapping };
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
  source?: Source;
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
  const { source: onlySource, column_mapping, row_format, pairs_per_row, format, test_size, max_samples, ...otherFields } = (datasetConfig ?? {}) as DatasetConfig & Values;
  const source = onlySource ?? (otherFields.sources as { source: Source }[] | null)?.[0]?.source;
  const hasEvaluationSets = Boolean(otherFields.eval_source ?? otherFields.eval_sources);
  const data: DataDraft = {
    source: source ? (Object.fromEntries(Object.entries(source).filter(([, value]) => value != null)) as unknown as Source) : null,
    mapping: column_mapping ?? {},
    rowFormat: row_format ?? '',
    pairsPerRow: pairs_per_row ?? DATASET_DEFAULTS.pairs_per_row,
    format: format?.format_type ?? DATASET_DEFAULTS.format.format_type,
    templates: format?.custom_templates ?? {},
    keepsReasoning: format?.enable_thinking ?? DATASET_DEFAULTS.format.enable_thinking,
    systemAsUser: format?.system_as_user ?? DATASET_DEFAULTS.format.system_as_user,
    testSize: test_size ?? (hasEvaluationSets ? 0 : DATASET_DEFAULTS.test_size),
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
