import { expect, test } from 'vitest';
import { differences } from './differences';

test('only settings that differ are returned, nested ones included', () => {
  const base = { lr: 1e-4, same: 'x', dataset: { test_size: 0.1, source: { id: 'a' } } };
  const other = { lr: 2e-4, same: 'x', dataset: { test_size: 0.1, source: { id: 'b' } }, extra: [1] };
  expect(differences([base, other])).toEqual([
    { name: 'lr', values: ['0.0001', '0.0002'] },
    { name: 'dataset.source.id', values: ['a', 'b'] },
    { name: 'extra', values: ['–', '[1]'] },
  ]);
});

test('the sources of a data set are compared field by field, other lists as a whole', () => {
  const config = (weight: number): Record<string, unknown> => ({ dataset: { sources: [{ source: { file_path: 'a', repo_id: null }, weight }] }, target_modules: [String(weight)] });
  expect(differences([config(1), config(2), {}])).toEqual([
    { name: 'dataset.sources.0.source.file_path', values: ['a', 'a', '–'] },
    { name: 'dataset.sources.0.weight', values: ['1', '2', '–'] },
    { name: 'target_modules', values: ['["1"]', '["2"]', '–'] },
  ]);
});
