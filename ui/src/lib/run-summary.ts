/** A summary of what a run will do. */

import type { Values } from './new-run/draft';
import { FIELDS } from './new-run/fields';
import type { Source } from './new-run/sources';

const METHODS: Record<string, string> = {
  orpo: 'ORPO', dpo: 'DPO', simpo: 'SimPO', cpo: 'CPO', ipo: 'IPO', kto: 'KTO', sft: 'supervised fine-tuning (SFT) on the chosen answers',
};

export function summarize(config: Values): string {
  const value = (name: string): unknown => config[name] ?? FIELDS.get(name)?.defaultValue;
  const dataset = config.dataset as { source?: Source; test_size: number; sources?: { source: Source }[] | null; eval_source?: Source | { source: Source } | null; eval_sources?: Record<string, unknown> | null };
  const perStep = Number(value('batch_size')) * Number(value('gradient_accumulation_steps'));
  const method = METHODS[String(value('training_mode'))] ?? value('training_mode');
  const target = value('use_lora') === false ? 'all weights' : `rank-${value('lora_r')} adapters on ${weights(value('use_4bit'), value('use_8bit'))}`;
  const length = value('max_steps') ? `${value('max_steps')} steps` : `${value('num_epochs')} ${Number(value('num_epochs')) === 1 ? 'epoch' : 'epochs'}`;
  const data = dataset.sources ? dataset.sources.map((one) => nameOf(one.source)).join(', ') : nameOf(dataset.source as Source);
  const evaluated = [...Object.keys(dataset.eval_sources ?? {}), ...(dataset.eval_source ? [nameOf('source' in dataset.eval_source ? dataset.eval_source.source : dataset.eval_source)] : [])];
  const heldOut = dataset.test_size ? `${Math.round(dataset.test_size * 1000) / 10}% of the pairs are held out for evaluation.` : 'No pairs are held out for evaluation.';
  const evaluation = evaluated.length > 0 ? `${dataset.test_size ? `${heldOut} ` : ''}Evaluates on ${evaluated.join(', ')}.` : heldOut;
  return [
    `Trains ${target} of ${config.base_model} with ${method} on ${data} for ${length}, with ${perStep} ${perStep === 1 ? 'pair' : 'pairs'} per step.`,
    evaluation,
    destinations(String(config.output_name), value('push_to_hub') === true, value('use_wandb') === true),
  ].join(' ');
}

function destinations(name: string, uploads: boolean, logsToWandb: boolean): string {
  const model = uploads ? `The model is saved as ${name} and uploaded to the Hub` : `The model is saved as ${name}`;
  if (logsToWandb) return `${model}; settings and metrics are sent to Weights & Biases.`;
  return uploads ? `${model}.` : `${model}; nothing is uploaded.`;
}

function weights(in4bit: unknown, in8bit: unknown): string {
  return in4bit === true && in8bit !== true ? 'the 4-bit weights' : in8bit === true ? 'the 8-bit weights' : 'the weights';
}

function nameOf(source: Source): string {
  if (source.source_type === 'huggingface') return `${source.repo_id} from the Hub`;
  return source.source_type === 'upload' ? 'your upload' : String(source.source_type === 'url' ? source.url : source.file_path);
}
