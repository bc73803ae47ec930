import { expect, test } from 'vitest';
import { hasOptions, optionText, withOptionText } from './source-options';
import type { Source } from './sources';

const repo: Source = { source_type: 'huggingface', repo_id: 'org/pairs', split: 'train' };

test('files are entered one per line', () => {
  const two = withOptionText(repo, 'data_files', ' english/*.parquet\n\nfrench/*.parquet ');
  expect(two.data_files).toEqual(['english/*.parquet', 'french/*.parquet']);
  expect(optionText(two, 'data_files')).toBe('english/*.parquet\nfrench/*.parquet');
  expect(withOptionText(two, 'data_files', 'a.jsonl').data_files).toBe('a.jsonl');
  expect(withOptionText(two, 'data_files', ' \n')).toEqual(repo);
});

test('options are those of the type of source', () => {
  const file: Source = { source_type: 'local_file', file_path: 'a.csv' };
  expect(hasOptions(file)).toBe(false);
  expect(hasOptions(withOptionText(file, 'encoding', 'cp1252'))).toBe(true);
  expect(hasOptions(withOptionText(repo, 'revision', 'v1.0'))).toBe(true);
});
