/** A configuration that is being written: its parts, and what the server has to say about each. */

import { DATASET_DEFAULTS, initialOf } from './fields';

export type Values = Record<string, unknown>;

export interface Source {
  source_type: 'upload' | 'local_file' | 'huggingface';
  dataset_id?: string;
  file_path?: string;
  repo_id?: string;
  split?: string;
}

/** Whether both lead to the same rows, in whichever order their fields are. */
export function isSameSource(one: Source | null, other: Source | null): boolean {
  const parts = (source: Source | null): string => JSON.stringify(source && Object.entries(source).filter(([, value]) => value != null).sort());
  return parts(one) === parts(other);
}

export interface DataDraft {
  source: Source | null;
  mapping: Record<string, string>;
  format: string;
  /** The texts of the format custom, by the name of their place. */
  templates: Record<string, string>;
  keepsReasoning: boolean;
  testSize: number;
  /** The first so many rows; null for all. */
  maxSamples: number | null;
}

/** What a fresh form begins with: better suited to the few hundred pairs that people begin with than what the API takes. */
export const EMPTY_DATA: DataDraft = { source: null, mapping: {}, format: 'tokenizer', templates: {}, keepsReasoning: true, testSize: 0.05, maxSamples: null };

/** The data set as the API takes it; null while there is none. */
export function datasetOf(data: DataDraft, modelName: string): Values | null {
  if (data.source === null) return null;
  const mapping = Object.keys(data.mapping).length > 0 ? data.mapping : null;
  const format: Values = { format_type: data.format };
  if (data.format === 'custom') format.custom_templates = data.templates;
  if (!data.keepsReasoning) format.enable_thinking = false;
  const dataset: Values = { source: data.source, format, test_size: data.testSize, column_mapping: mapping };
  if (data.maxSamples !== null) dataset.max_samples = data.maxSamples;
  if (modelName) dataset.model_name = modelName;
  return dataset;
}

/** The configuration with what was changed alone, so that it stays short to read. */
export function configOf(model: string, name: string, data: DataDraft, values: Values): Values | null {
  const dataset = datasetOf(data, '');
  if (!model || !name || dataset === null) return null;
  return { base_model: model, output_name: name, dataset, ...values };
}

export interface Said {
  field: string | null;
  text: string;
}

/** Errors and warnings begin with the field they are about. */
export function said(messages: string[], fields: Iterable<string>): Said[] {
  const names = new Set([...fields, 'dataset']);
  return messages.map((message) => {
    const colon = message.indexOf(':');
    const path = colon > 0 ? message.slice(0, colon).trim() : '';
    const field = path.split('.')[0] ?? '';
    return names.has(field) ? { field, text: message.slice(colon + 1).trim() } : { field: null, text: message };
  });
}

/** A name for the model, from that of its base, that MODELS_DIR can have. */
export function suggestedName(model: string): string {
  const last = model.replace(/\/+$/, '').split('/').at(-1) ?? '';
  const clean = last.replace(/\.gguf$/i, '').replace(/[^A-Za-z0-9._-]+/g, '-').replace(/^[^A-Za-z0-9]+/, '');
  return clean ? `${clean.slice(0, 80)}-tuned` : '';
}

interface GivenDataset {
  source?: Source;
  column_mapping?: Record<string, string> | null;
  format?: { format_type?: string; custom_templates?: Record<string, string> | null; enable_thinking?: boolean };
  test_size?: number;
  max_samples?: number | null;
}

/** Which of the form's parts a configuration fills, for one that was saved or of an earlier run. */
export function partsOf(config: Values): { model: string; name: string; data: DataDraft; values: Values } {
  const { base_model, output_name, dataset, ...rest } = config;
  const given = (dataset ?? {}) as GivenDataset;
  const data: DataDraft = {
    source: given.source ? (Object.fromEntries(Object.entries(given.source).filter(([, value]) => value != null)) as unknown as Source) : null,
    mapping: given.column_mapping ?? {},
    format: given.format?.format_type ?? DATASET_DEFAULTS.format.format_type,
    templates: given.format?.custom_templates ?? {},
    keepsReasoning: given.format?.enable_thinking ?? DATASET_DEFAULTS.format.enable_thinking,
    testSize: given.test_size ?? DATASET_DEFAULTS.test_size,
    maxSamples: given.max_samples ?? null,
  };
  const changed = Object.entries(rest).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(initialOf(name, rest) ?? null));
  return { model: String(base_model ?? ''), name: String(output_name ?? ''), data, values: Object.fromEntries(changed) };
}

export const PROCESSOR: Values = { use_4bit: false, optimizer_type: 'adamw_torch', max_length: 512, lora_r: 16, lora_alpha: 32, learning_rate: 2e-4, gradient_accumulation_steps: 8 };

export const PRESETS: { name: string; help: string; values: Values }[] = [
  { name: 'Defaults', help: 'A good place to begin on a GPU.', values: {} },
  { name: 'Quick look', help: 'Fifty steps, to see that all is well.', values: { max_steps: 50, learning_rate: 2e-5 } },
  { name: 'Little memory', help: 'For small GPUs: four bits, recomputed activations, shorter pairs.', values: { use_4bit: true, gradient_checkpointing: true, max_length: 1024, lora_r: 16, lora_alpha: 16 } },
  { name: 'Processor', help: 'For a machine without a GPU, and a small model.', values: PROCESSOR },
];
