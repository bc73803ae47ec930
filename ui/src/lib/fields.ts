/** The settings of a run as form fields, in the order in which people meet them. */

import described from '../api/fields.json';

export interface Field {
  name: string;
  help: string;
  kind: 'string' | 'number' | 'integer' | 'boolean' | 'choice' | 'list';
  of?: string;
  choices?: string[];
  isSecret: boolean;
  isNullable: boolean;
  minimum?: number;
  isAbove: boolean;
  maximum?: number;
  isBelow: boolean;
  initial: unknown;
}

/** What was typed into a field and can't be taken. */
export interface Refused {
  text: string;
  failure: string;
}

export const FIELDS = new Map((described.settings as Field[]).map((field) => [field.name, field]));
/** The value that the API takes for a setting which these values leave out. */
export function initialOf(name: string, values: Record<string, unknown>): unknown {
  if (name === 'max_prompt_length') return Math.floor(Number(values.max_length ?? FIELDS.get('max_length')?.initial) / 2);
  return FIELDS.get(name)?.initial;
}

/** What the API takes where a data set leaves it out. */
export const DATASET_DEFAULTS = described.dataset;
const SECRETS = new Set([...FIELDS.values()].filter((field) => field.isSecret).map((field) => field.name));

/** What may be shown, copied and saved. */
export function withoutSecrets<Value>(values: Record<string, Value>): Record<string, Value> {
  return Object.fromEntries(Object.entries(values).filter(([name]) => !SECRETS.has(name)));
}

const ELSEWHERE = ['base_model', 'output_name', 'hf_token'];
export const ESSENTIAL = ['training_mode', 'learning_rate', 'num_epochs', 'gradient_accumulation_steps', 'max_length', 'lora_r', 'use_4bit'];

const GROUPS: [string, string[]][] = [
  ['Method', ['beta', 'simpo_gamma', 'seed', 'shuffle_dataset']],
  ['Lengths and steps', ['max_prompt_length', 'batch_size', 'max_steps', 'warmup_ratio', 'lr_scheduler_type', 'lr_scheduler_cycles', 'lr_scheduler_power', 'weight_decay', 'max_grad_norm']],
  ['Adapters', ['use_lora', 'lora_alpha', 'lora_dropout', 'disable_dropout', 'target_modules']],
  ['Evaluation and checkpoints', ['eval_steps', 'save_steps', 'logging_steps', 'early_stopping_patience', 'load_best_at_end']],
  ['Memory and precision', ['use_8bit', 'gradient_checkpointing', 'dtype', 'attn_implementation', 'gpu_ids']],
  ['Optimizer', ['optimizer_type', 'adam_beta1', 'adam_beta2', 'adam_epsilon']],
  ['Hugging Face Hub', ['push_to_hub', 'merge_lora_before_upload', 'merge_dtype', 'hf_hub_private']],
  ['Weights & Biases', ['use_wandb', 'wandb_key', 'wandb_project', 'wandb_run_name', 'wandb_tags', 'wandb_notes']],
];

/** All settings by group; what no group names is in the last one, so that a new setting is never missing. */
export function groups(): { title: string; fields: Field[] }[] {
  const named = new Set([...ELSEWHERE, ...ESSENTIAL, ...GROUPS.flatMap(([, names]) => names)]);
  const others = [...FIELDS.keys()].filter((name) => !named.has(name));
  return [...GROUPS, ['More', others] as [string, string[]]]
    .map(([title, names]) => ({ title, fields: names.flatMap((name) => FIELDS.get(name) ?? []) }))
    .filter((group) => group.fields.length > 0);
}

export function label(name: string): string {
  const words = name.replaceAll('_', ' ').replace(/\bnum\b/, 'number of').replace(/\blr\b/, 'learning rate').replace(/\blora\b/g, 'LoRA').replace('dtype', 'precision').replace('attn', 'attention').replace('gpu', 'GPU').replace('hf hub', 'Hub').replace('to hub', 'to the Hub').replace('wandb', 'W&B').replace(/(\d)bit/, '$1 bits');
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function rangeOf(field: Field): string {
  if (field.kind !== 'number' && field.kind !== 'integer') return '';
  const low = field.minimum === undefined ? '' : `${field.isAbove ? 'above' : 'from'} ${field.minimum}`;
  const high = field.maximum === undefined ? '' : `${field.isBelow ? 'below' : 'to'} ${field.maximum}`;
  return [low, high].filter(Boolean).join(' ');
}

export const sentence = (words: string): string => `${words.charAt(0).toUpperCase()}${words.slice(1)}.`;

/** What was typed, as the API takes it. `undefined`: nothing, so the default holds. Throws what is wrong with it. */
export function parse(field: Field, text: string): unknown {
  const given = text.trim();
  if (given === '') return undefined;
  if (field.kind === 'list') {
    const parts = given.split(',').map((part) => part.trim()).filter(Boolean);
    return field.of === 'integer' ? parts.map((part) => asNumber(part, true)) : parts;
  }
  if (field.kind !== 'number' && field.kind !== 'integer') return given;
  const value = asNumber(given, field.kind === 'integer');
  const tooLow = field.minimum !== undefined && (value < field.minimum || (field.isAbove && value === field.minimum));
  const tooHigh = field.maximum !== undefined && (value > field.maximum || (field.isBelow && value === field.maximum));
  if (tooLow || tooHigh) throw new Error(`must be ${rangeOf(field)}`);
  return value;
}

function asNumber(text: string, isWhole: boolean): number {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${text.slice(0, 20)} is no number`);
  if (isWhole && !Number.isInteger(value)) throw new Error('must be a whole number');
  return value;
}

export function shown(value: unknown): string {
  if (value === null || value === undefined) return '';
  return Array.isArray(value) ? value.join(', ') : String(value);
}
