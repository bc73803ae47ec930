/** What a run will do, as a person would say it. */

import type { Source, Values } from './draft';
import { FIELDS } from './fields';

const METHODS: Record<string, string> = {
  orpo: 'ORPO', dpo: 'DPO', simpo: 'SimPO', cpo: 'CPO', ipo: 'IPO', kto: 'KTO', sft: 'plain fine-tuning on the chosen answers (SFT)',
};

export function inWords(config: Values): string {
  const value = (name: string): unknown => config[name] ?? FIELDS.get(name)?.initial;
  const dataset = config.dataset as { source: Source; test_size: number };
  const perStep = Number(value('batch_size')) * Number(value('gradient_accumulation_steps'));
  const what = value('use_lora') === false ? 'Every weight' : `Adapters of rank ${value('lora_r')} on ${weights(value('use_4bit'), value('use_8bit'))}`;
  const long = value('max_steps') ? `for ${value('max_steps')} steps` : `for ${value('num_epochs')} ${Number(value('num_epochs')) === 1 ? 'pass' : 'passes'} over the data`;
  const held = dataset.test_size ? `${Math.round(dataset.test_size * 1000) / 10} % of the pairs are held out to evaluate on` : 'No pairs are held out';
  return [
    `${what} of ${config.base_model} will be trained by ${METHODS[String(value('training_mode'))] ?? value('training_mode')}`,
    ` on ${placeOf(dataset.source)}, ${long}, ${perStep} ${perStep === 1 ? 'pair' : 'pairs'} a step. `,
    `${held}. The result will be called ${config.output_name}`,
    leaving(value('push_to_hub') === true, value('use_wandb') === true),
  ].join('');
}

function leaving(uploads: boolean, reports: boolean): string {
  if (uploads) return reports ? ' and be uploaded to the Hub; settings and figures go to Weights & Biases.' : ' and be uploaded to the Hub.';
  return reports ? '; settings and figures go to Weights & Biases.' : '; nothing leaves this machine.';
}

function weights(in4bit: unknown, in8bit: unknown): string {
  return in4bit === true && in8bit !== true ? 'the 4-bit weights' : in8bit === true ? 'the 8-bit weights' : 'the weights';
}

function placeOf(source: Source): string {
  if (source.source_type === 'huggingface') return `${source.repo_id} from the Hub`;
  return source.source_type === 'upload' ? 'your upload' : String(source.file_path);
}
