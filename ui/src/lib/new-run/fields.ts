/** The settings of a run as form fields, generated from the API's schema and grouped for the form. */

import generated from '../../api/fields.json';

export interface Field {
  name: string;
  help: string;
  kind: 'string' | 'number' | 'integer' | 'boolean' | 'choice' | 'list';
  itemType?: string;
  choices?: string[];
  isSecret: boolean;
  isNullable: boolean;
  minimum?: number;
  isMinimumExclusive: boolean;
  maximum?: number;
  isMaximumExclusive: boolean;
  defaultValue: unknown;
}

/** Text in a field that cannot be parsed. `message` continues the field's label: "must be between 1 and 8". */
export interface InvalidInput {
  text: string;
  message: string;
}

export const FIELDS = new Map((generated.settings as Field[]).map((field) => [field.name, field]));
/** The defaults of a data set in the API. */
export const DATASET_DEFAULTS = generated.dataset;
const SECRETS = new Set([...FIELDS.values()].filter((field) => field.isSecret).map((field) => field.name));

/** Return the API's default of a setting, which may depend on the other values. */
export function defaultOf(name: string, values: Record<string, unknown>): unknown {
  if (name === 'max_prompt_length') return Math.floor(Number(values.max_length ?? FIELDS.get('max_length')?.defaultValue) / 2);
  return FIELDS.get(name)?.defaultValue;
}

/** Return the values that may be displayed, copied and stored. */
export function withoutSecrets<Value>(values: Record<string, Value>): Record<string, Value> {
  return Object.fromEntries(Object.entries(values).filter(([name]) => !SECRETS.has(name)));
}

const OUTSIDE_GROUPS = ['base_model', 'output_name', 'hf_token'];
export const ESSENTIAL_SETTINGS = ['training_mode', 'learning_rate', 'num_epochs', 'gradient_accumulation_steps', 'max_length', 'lora_r', 'use_4bit'];

const GROUPS: [string, string[]][] = [
  ['Method', ['beta', 'simpo_gamma', 'desirable_weight', 'undesirable_weight', 'loss_type', 'loss_weights', 'label_smoothing', 'nll_weight', 'dpop_weight', 'length_normalize', 'ld_alpha', 'neftune_noise_alpha', 'seed', 'shuffle_dataset']],
  ['Lengths and steps', ['max_prompt_length', 'batch_size', 'max_steps', 'warmup_ratio', 'lr_scheduler_type', 'lr_scheduler_cycles', 'lr_scheduler_power', 'weight_decay', 'max_grad_norm']],
  ['Adapters', ['use_lora', 'lora_alpha', 'use_rslora', 'use_dora', 'lora_dropout', 'disable_dropout', 'target_modules', 'modules_to_save']],
  ['Evaluation and checkpoints', ['eval_steps', 'save_steps', 'logging_steps', 'early_stopping_patience', 'load_best_at_end']],
  ['Memory and precision', ['use_8bit', 'gradient_checkpointing', 'dtype', 'attn_implementation', 'gpu_ids']],
  ['Optimizer', ['optimizer_type', 'adam_beta1', 'adam_beta2', 'adam_epsilon']],
  ['Hugging Face Hub', ['push_to_hub', 'merge_lora_before_upload', 'merge_dtype', 'hf_hub_private']],
  ['Weights & Biases', ['use_wandb', 'wandb_key', 'wandb_project', 'wandb_run_name', 'wandb_tags', 'wandb_notes']],
];

/** Return all settings by group. Settings without a group are in the last one, so that a new setting is never missing. */
export function settingGroups(): { title: string; fields: Field[] }[] {
  const grouped = new Set([...OUTSIDE_GROUPS, ...ESSENTIAL_SETTINGS, ...GROUPS.flatMap(([, names]) => names)]);
  const others = [...FIELDS.keys()].filter((name) => !grouped.has(name));
  return [...GROUPS, ['Other', others] as [string, string[]]]
    .map(([title, names]) => ({ title, fields: names.flatMap((name) => FIELDS.get(name) ?? []) }))
    .filter((group) => group.fields.length > 0);
}

/** Words of settings' names as the page writes them. */
const WORDS = new Map([
  ['attn', 'attention'],
  ['dora', 'DoRA'],
  ['dpop', 'DPOP'],
  ['dtype', 'precision'],
  ['gpu', 'GPU'],
  ['ld', 'LD'],
  ['lora', 'LoRA'],
  ['lr', 'learning rate'],
  ['neftune', 'NEFTune'],
  ['nll', 'NLL'],
  ['num', 'number of'],
  ['rslora', 'rsLoRA'],
  ['simpo', 'SimPO'],
  ['wandb', 'W&B'],
]);

/** Return the label of a setting: `num_epochs` is "Number of epochs". */
export function labelOf(name: string): string {
  const words = name.split('_').map((word) => WORDS.get(word) ?? word.replace(/^(\d)bit$/, '$1-bit weights'));
  const label = words.join(' ').replace('hf hub', 'Hub').replace('to hub', 'to the Hub');
  return label.charAt(0).toUpperCase() + label.slice(1);
}

/** Return the allowed range as a phrase that follows "must be"; '' if there is none. */
export function rangeOf(field: Field): string {
  const { minimum, maximum, isMinimumExclusive, isMaximumExclusive } = field;
  if (field.kind !== 'number' && field.kind !== 'integer') return '';
  if (minimum !== undefined && maximum !== undefined && !isMinimumExclusive && !isMaximumExclusive) return `between ${minimum} and ${maximum}`;
  const low = minimum === undefined ? '' : `${isMinimumExclusive ? 'greater than' : 'at least'} ${minimum}`;
  const high = maximum === undefined ? '' : `${isMaximumExclusive ? 'less than' : 'at most'} ${maximum}`;
  return [low, high].filter(Boolean).join(' and ');
}

export const asSentence = (phrase: string): string => `${phrase.charAt(0).toUpperCase()}${phrase.slice(1)}.`;

/** Return the value for the API, or `undefined` for the default if the text is empty. Throws an Error with the message of `InvalidInput`. */
export function parseInput(field: Field, text: string): unknown {
  const trimmed = text.trim();
  if (trimmed === '') return undefined;
  if (field.kind === 'list') {
    const items = trimmed.split(',').map((item) => item.trim()).filter(Boolean);
    const isNumeric = field.itemType === 'integer' || field.itemType === 'number';
    return isNumeric ? items.map((item) => parseNumber(item, field.itemType === 'integer')) : items;
  }
  if (field.kind !== 'number' && field.kind !== 'integer') return trimmed;
  const value = parseNumber(trimmed, field.kind === 'integer');
  const isTooLow = field.minimum !== undefined && (value < field.minimum || (field.isMinimumExclusive && value === field.minimum));
  const isTooHigh = field.maximum !== undefined && (value > field.maximum || (field.isMaximumExclusive && value === field.maximum));
  if (isTooLow || isTooHigh) throw new Error(`must be ${rangeOf(field)}`);
  return value;
}

function parseNumber(text: string, isInteger: boolean): number {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`must be a number, not ${text.slice(0, 20)}`);
  if (isInteger && !Number.isInteger(value)) throw new Error('must be an integer');
  return value;
}

/** Return a value as the text of its field. */
export function formatValue(value: unknown): string {
  if (value === null || value === undefined) return '';
  return Array.isArray(value) ? value.join(', ') : String(value);
}
