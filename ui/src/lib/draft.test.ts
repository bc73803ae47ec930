import { expect, test } from 'vitest';
import { configOf, datasetOf, DEFAULT_DATA, draftFromConfig, suggestName } from './draft';

const data = { ...DEFAULT_DATA, source: { source_type: 'upload' as const, dataset_id: 'u' } };

test('a configuration contains changed settings only', () => {
  expect(configOf('m', 'n', data, { lora_r: 8 })).toEqual({
    base_model: 'm', output_name: 'n', lora_r: 8,
    dataset: { source: { source_type: 'upload', dataset_id: 'u' }, format: { format_type: 'tokenizer' }, test_size: 0.05, column_mapping: null },
  });
  expect(configOf('', 'n', data, {})).toBeNull();
  expect(configOf('m', 'n', DEFAULT_DATA, {})).toBeNull();
});

test('a name is derived from the base model', () => {
  expect(suggestName('HuggingFaceTB/SmolLM2-135M-Instruct')).toBe('SmolLM2-135M-Instruct-tuned');
  expect(suggestName('/models/a b.gguf')).toBe('a-b-tuned');
  expect(suggestName('')).toBe('');
});

test('defaults of an earlier configuration are dropped', () => {
  const config = { ...configOf('m', 'n', data, { lora_r: 8 }), beta: 0.1 };
  const parts = draftFromConfig(config);
  expect(parts).toEqual({ model: 'm', name: 'n', data, values: { lora_r: 8 } });
});

test('the prompt length follows the pair length unless it is set', () => {
  const config = { base_model: 'm', output_name: 'n', max_length: 256 };
  expect(draftFromConfig({ ...config, max_prompt_length: 128 }).values).toEqual({ max_length: 256 });
  expect(draftFromConfig({ ...config, max_prompt_length: 64 }).values).toEqual({ max_length: 256, max_prompt_length: 64 });
});

test('omitted values are the defaults of the API, not those of the form', () => {
  const dataset = { source: { source_type: 'upload', dataset_id: 'u' } };
  const parts = draftFromConfig({ base_model: 'm', output_name: 'n', dataset });
  expect([parts.data.format, parts.data.testSize]).toEqual(['chatml', 0.01]);
});

test('a data set survives the form unchanged', () => {
  const dataset = {
    source: { source_type: 'huggingface', repo_id: 'a/b', split: 'test', file_format: 'csv' },
    format: { format_type: 'custom', custom_templates: { user_prefix: 'Q: ', assistant_suffix: '\n' }, enable_thinking: false, system_as_user: true },
    column_mapping: { good: 'chosen' },
    row_format: 'nectar',
    pairs_per_row: 'all',
    test_size: 0.3,
    max_samples: 7,
    drop_duplicates: true,
    strip: true,
    default_system: 'Be brief.',
    field_without_an_input: ['kept'],
  };
  const parts = draftFromConfig({ base_model: 'm', output_name: 'n', dataset });
  expect(configOf('m', 'n', parts.data, parts.values)).toEqual({ base_model: 'm', output_name: 'n', dataset });
});

test('several sources and data sets to evaluate on survive the form, until another source is selected', () => {
  const file = (name: string): { source_type: 'local_file'; file_path: string } => ({ source_type: 'local_file', file_path: name });
  const sources = [{ source: file('a') }, { source: file('b'), weight: 2 }];
  const { data } = draftFromConfig({ base_model: 'm', output_name: 'n', dataset: { sources, eval_sources: { news: file('c') } } });
  expect(data.source).toEqual(file('a'));
  expect(data.testSize).toBe(0);
  const dataset = datasetOf(data, '');
  expect(dataset).toMatchObject({ source: file('a'), sources, eval_sources: { news: file('c') }, test_size: 0 });
  expect(datasetOf({ ...data, source: file('z') }, '')).not.toHaveProperty('sources');
});
