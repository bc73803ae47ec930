import { expect, test } from 'vitest';
import { summarize } from './run-summary';

test('a run is summarized, defaults included', () => {
  const dataset = { source: { source_type: 'upload', dataset_id: 'u' }, test_size: 0.05 };
  expect(summarize({ base_model: 'org/m', output_name: 'n', dataset, use_4bit: false, lora_r: 8, num_epochs: 1 })).toBe(
    'Trains rank-8 adapters on the weights of org/m with ORPO on your upload for 1 epoch, with 16 pairs per step. ' +
      '5% of the pairs are held out for evaluation. The model is saved as n; nothing is uploaded.',
  );
  expect(summarize({ base_model: 'm', output_name: 'n', dataset, use_wandb: true })).toContain('saved as n; settings and metrics are sent to Weights & Biases.');
  expect(summarize({ base_model: 'm', output_name: 'n', dataset, push_to_hub: true })).toContain('saved as n and uploaded to the Hub.');
});

test('all sources to train on and to evaluate on are named', () => {
  const file = (name: string): unknown => ({ source_type: 'local_file', file_path: `/data/${name}.jsonl` });
  const dataset = { source: file('a'), sources: [{ source: file('a') }, { source: file('b') }], eval_sources: { news: file('c') }, eval_source: { source_type: 'url', url: 's3://b/d.csv' }, test_size: 0 };
  const summary = summarize({ base_model: 'm', output_name: 'n', dataset });
  expect(summary).toContain('on /data/a.jsonl, /data/b.jsonl for');
  expect(summary).toContain('Evaluates on news, s3://b/d.csv.');
  expect(summary).not.toContain('held out');
  for (const eval_source of [file('d'), { source: file('d'), max_samples: 5 }])
    expect(summarize({ base_model: 'm', output_name: 'n', dataset: { source: file('a'), eval_source, test_size: 0 } })).toContain('Evaluates on /data/d.jsonl.');
});
