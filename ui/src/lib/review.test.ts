import { expect, test } from 'vitest';
import { inWords } from './review';

test('a run is told in words, defaults included', () => {
  const dataset = { source: { source_type: 'upload', dataset_id: 'u' }, test_size: 0.05 };
  expect(inWords({ base_model: 'org/m', output_name: 'n', dataset, use_4bit: false, lora_r: 8, num_epochs: 1 })).toBe(
    'Adapters of rank 8 on the weights of org/m will be trained by ORPO on your upload, for 1 pass over the data, 16 pairs a step. ' +
      '5 % of the pairs are held out to evaluate on. The result will be called n; nothing leaves this machine.',
  );
  expect(inWords({ base_model: 'm', output_name: 'n', dataset, use_wandb: true })).toContain('called n; settings and figures go to Weights & Biases.');
  expect(inWords({ base_model: 'm', output_name: 'n', dataset, push_to_hub: true })).toContain('called n and be uploaded to the Hub.');
});
