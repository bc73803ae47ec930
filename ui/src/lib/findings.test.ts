import { expect, test } from 'vitest';
import { describe, settingOf } from './findings';

const finding = (field: string | null) => ({ field, message: 'must be smaller', severity: 'error' as const });

test('a finding belongs to the setting at the root of its path', () => {
  expect(['lora_r', 'dataset.source.repo_id', 'model_name', null].map((field) => settingOf(finding(field)))).toEqual(['lora_r', 'dataset', null, null]);
});

test('the text of a finding names its field', () => {
  expect([describe(finding('dataset.source')), describe(finding(null))]).toEqual(['dataset.source: must be smaller', 'Must be smaller']);
});
