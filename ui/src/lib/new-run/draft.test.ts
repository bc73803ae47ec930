import { expect, test } from 'vitest';
import { alone, configOf, datasetOf, DEFAULT_DATA, draftFromConfig, missingIn, suggestName, withEvaluationSet, withFurtherSource, withoutSource, withSelected, withSetting, withSource, type DataDraft } from './draft';
import { plainSource, type Source, type SourceDraft } from './sources';

const data: DataDraft = { ...DEFAULT_DATA, sources: [plainSource(0, { source_type: 'upload', dataset_id: 'u' })] };
const file = (name: string): Source => ({ source_type: 'local_file', file_path: name });
const loaded = (dataset: object): DataDraft => draftFromConfig({ base_model: 'm', output_name: 'n', dataset }).data;
const sourceAt = (data: DataDraft, index: number): SourceDraft => data.sources[index] as SourceDraft;

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

test.each([
  { sources: [{ source: file('a') }, { source: file('b'), weight: 2 }], source_order: 'concatenate', eval_sources: { news: file('c') }, test_size: 0 },
  { sources: [{ source: file('a'), column_mapping: { q: 'prompt' }, later_option: 1 }, { source: file('b'), row_format: 'nectar', max_samples: 5, column_mapping: {} }], eval_source: file('c'), test_size: 0.1 },
  { sources: [{ source: file('a'), weight: 0.5 }], test_size: 0.1, max_samples: 9, row_format: 'alpaca' },
  { source: file('a'), eval_sources: { news: file('c'), code: { source: file('d'), column_mapping: { q: 'prompt' }, later_option: true } }, test_size: 0 },
])('several sources and data sets to evaluate on survive the form unchanged: %o', (dataset) => {
  expect(datasetOf(loaded(dataset), '')).toEqual({ ...dataset, format: { format_type: 'chatml' }, column_mapping: null });
});

test('what the server adds to several sources is not a setting of them', () => {
  const source = { ...file('a'), repo_id: null, split: 'train', file_format: null };
  const parts = loaded({ source, sources: [{ source, column_mapping: null, row_format: null, max_samples: null, weight: 1 }], eval_source: null, eval_sources: null, source_order: 'interleave' });
  expect(datasetOf(parts, '')).toMatchObject({ source: { ...file('a'), split: 'train' } });
  expect(parts.testSize).toBe(0.01);
  expect(loaded({ source: file('a'), eval_source: file('b') }).testSize).toBe(0);
});

test('a further source has its own mapping, and a source that remains alone gives its settings to the data set', () => {
  const first = withSetting(data, sourceAt(data, 0), { mapping: { ask: 'prompt' } });
  let both = withFurtherSource(first);
  expect(missingIn(both)).toBe('Select a data set for source 2, or remove it.');
  expect(datasetOf(both, '')).toBeNull();
  both = withSelected(both, sourceAt(both, 1), file('b'));
  both = withSetting(both, sourceAt(both, 1), { rowFormat: 'nectar' });
  both = withSource(both, { ...sourceAt(both, 1), weight: 2, maxSamples: 7 });
  expect(datasetOf(both, '')).toMatchObject({
    sources: [{ source: { dataset_id: 'u' } }, { source: file('b'), column_mapping: {}, row_format: 'nectar', weight: 2, max_samples: 7 }],
    column_mapping: { ask: 'prompt' },
  });
  expect(datasetOf(alone(both, sourceAt(both, 1)), '')).toMatchObject({ source: file('b'), column_mapping: null, row_format: 'nectar', max_samples: 7 });
  expect(withoutSource(both, sourceAt(both, 1))).toEqual(first);
  expect(datasetOf(withoutSource(both, sourceAt(both, 0)), '')).toMatchObject({ source: file('b'), column_mapping: null, row_format: 'nectar', max_samples: 7 });
});

test('without the first of three sources, the others keep their mappings', () => {
  const three = loaded({ sources: [{ source: file('a') }, { source: file('b'), column_mapping: { b: 'prompt' } }, { source: file('c') }], column_mapping: { a: 'prompt' } });
  expect(datasetOf(withoutSource(three, sourceAt(three, 0)), '')).toMatchObject({ sources: [{ source: file('b') }, { source: file('c'), column_mapping: { a: 'prompt' } }], column_mapping: { b: 'prompt' } });
  expect(datasetOf(withoutSource(three, sourceAt(three, 1)), '')).toMatchObject({ sources: [{ source: file('a') }, { source: file('c') }], column_mapping: { a: 'prompt' } });
});

test('another source resets mapping and format, the same one does not', () => {
  const mapped = { ...data, mapping: { ask: 'prompt' }, rowFormat: 'standard' };
  expect(withSelected(mapped, sourceAt(mapped, 0), { dataset_id: 'u', source_type: 'upload' })).toBe(mapped);
  expect(withSelected(mapped, sourceAt(mapped, 0), file('z'))).toMatchObject({ mapping: {}, rowFormat: '' });
});

test('sets to evaluate on need a data set and different names', () => {
  const added = withEvaluationSet(data);
  expect(missingIn(added)).toBe('Select a data set for the evaluation set eval-1, or remove it.');
  const sets = withEvaluationSet(added).evaluationSets.map((set) => ({ ...set, source: file(set.name) }));
  expect(datasetOf({ ...data, evaluationSets: sets }, '')).toMatchObject({ eval_sources: { 'eval-1': file('eval-1'), 'eval-2': file('eval-2') } });
  const same = sets.map((set) => ({ ...set, name: 'news' }));
  expect(missingIn({ ...data, evaluationSets: same })).toBe('Correct the names of the evaluation sets.');
  expect(datasetOf({ ...data, evaluationSets: same }, '')).toBeNull();
});
