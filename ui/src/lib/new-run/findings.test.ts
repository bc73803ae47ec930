import { expect, test } from 'vitest';
import { describe, describeOfSource, messagesByPlace, settingOf } from './findings';

const finding = (field: string | null) => ({ field, message: 'must be smaller', severity: 'error' as const });

test('a finding belongs to the setting at the root of its path', () => {
  expect(['lora_r', 'dataset.source.repo_id', 'model_name', null].map((field) => settingOf(finding(field)))).toEqual(['lora_r', 'dataset', null, null]);
});

test('the text of a finding names its field', () => {
  expect([describe(finding('dataset.source')), describe(finding(null))]).toEqual(['dataset.source: must be smaller', 'Must be smaller']);
});

test('findings are assigned to the source that they concern', () => {
  const places = ['dataset.sources.1', 'dataset.eval_sources.a', 'dataset.eval_sources.a.b'];
  const fields = ['dataset.sources.1', 'dataset.sources.10', 'dataset.sources.1.weight', 'dataset.eval_sources.a.b.repo_id', null];
  expect([...messagesByPlace(fields.map(finding), places)]).toEqual([
    ['dataset.sources.1', ['Must be smaller', 'Weight must be smaller']],
    ['', ['Must be smaller', 'Must be smaller']],
    ['dataset.eval_sources.a.b', ['Must be smaller']],
  ]);
});

test('a finding names its source if there are several', () => {
  expect(['dataset.sources.1', 'dataset.eval_sources.news', 'dataset.source', null].map((field) => describeOfSource(finding(field)))).toEqual([
    'Source 2: must be smaller', 'Evaluation set news: must be smaller', 'Must be smaller', 'Must be smaller',
  ]);
});
