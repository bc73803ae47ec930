import { expect, test } from 'vitest';
import { configOf, EMPTY_DATA, partsOf, said, suggestedName } from './draft';

const data = { ...EMPTY_DATA, source: { source_type: 'upload' as const, dataset_id: 'u' } };

test('a configuration holds what was changed and no more', () => {
  expect(configOf('m', 'n', data, { lora_r: 8 })).toEqual({
    base_model: 'm', output_name: 'n', lora_r: 8,
    dataset: { source: { source_type: 'upload', dataset_id: 'u' }, format: { format_type: 'tokenizer' }, test_size: 0.05, column_mapping: null },
  });
  expect(configOf('', 'n', data, {})).toBeNull();
  expect(configOf('m', 'n', EMPTY_DATA, {})).toBeNull();
});

test('messages go to the field they begin with', () => {
  expect(said(['lora_r: too large', 'dataset.source: gone', 'No CUDA GPU here: slow'], ['lora_r'])).toEqual([
    { field: 'lora_r', text: 'too large' },
    { field: 'dataset', text: 'gone' },
    { field: null, text: 'No CUDA GPU here: slow' },
  ]);
});

test('a name is suggested from the model’s', () => {
  expect(suggestedName('HuggingFaceTB/SmolLM2-135M-Instruct')).toBe('SmolLM2-135M-Instruct-tuned');
  expect(suggestedName('/models/a b.gguf')).toBe('a-b-tuned');
  expect(suggestedName('')).toBe('');
});

test('an earlier configuration comes back without its defaults', () => {
  const config = { ...configOf('m', 'n', data, { lora_r: 8 }), beta: 0.1 };
  const parts = partsOf(config);
  expect(parts).toEqual({ model: 'm', name: 'n', data, values: { lora_r: 8 } });
});

test('the prompt length follows the longest pair unless it was set', () => {
  const config = { base_model: 'm', output_name: 'n', max_length: 256 };
  expect(partsOf({ ...config, max_prompt_length: 128 }).values).toEqual({ max_length: 256 });
  expect(partsOf({ ...config, max_prompt_length: 64 }).values).toEqual({ max_length: 256, max_prompt_length: 64 });
});

test('what a configuration leaves out is what the API takes for it, not what a fresh form begins with', () => {
  const dataset = { source: { source_type: 'upload', dataset_id: 'u' } };
  const parts = partsOf({ base_model: 'm', output_name: 'n', dataset });
  expect([parts.data.format, parts.data.testSize]).toEqual(['chatml', 0.01]);
});

test('nothing of a data set is lost on the way through the form', () => {
  const dataset = {
    source: { source_type: 'huggingface', repo_id: 'a/b', split: 'test', file_format: 'csv' },
    format: { format_type: 'custom', custom_templates: { user_prefix: 'Q: ', assistant_suffix: '\n' }, enable_thinking: false },
    column_mapping: { good: 'chosen' },
    test_size: 0.3,
    max_samples: 7,
  };
  const parts = partsOf({ base_model: 'm', output_name: 'n', dataset });
  expect(configOf('m', 'n', parts.data, parts.values)).toEqual({ base_model: 'm', output_name: 'n', dataset });
});
