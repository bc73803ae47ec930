import { expect, test } from 'vitest';
import { isSameSource, nameOf, nameProblem, plainSource, unusedName, type EvaluationSet } from './sources';

const set = (key: number, name: string): EvaluationSet => ({ ...plainSource(key), name });

test('only a set that is alone may have no name', () => {
  const [none, news, alike, spaced, reserved] = ['', 'news', 'news', 'a b', 'held_out'].map((name, key) => set(key, name)) as EvaluationSet[];
  expect(nameProblem(none!, [none!])).toBe('');
  expect(nameProblem(none!, [none!, news!])).toContain('needs a name');
  expect(nameProblem(news!, [news!])).toBe('');
  expect(nameProblem(news!, [news!, alike!])).toContain('Another evaluation set');
  expect(nameProblem(spaced!, [spaced!])).toContain('letters, digits');
  expect(nameProblem(reserved!, [reserved!])).toContain('held_out');
});

test('a further set has a name that none has', () => {
  expect(unusedName([])).toBe('eval-1');
  expect(unusedName([set(0, 'eval-2'), set(1, 'eval-1')])).toBe('eval-3');
});

test('a source is named after its file or repository', () => {
  const files = new Map([['u', 'pairs.csv']]);
  expect(nameOf({ source_type: 'upload', dataset_id: 'u' }, files)).toBe('pairs.csv');
  expect(nameOf({ source_type: 'local_file', file_path: '/data/a.jsonl' }, files)).toBe('a.jsonl');
  expect(nameOf({ source_type: 'huggingface', repo_id: 'org/pairs' }, files)).toBe('org/pairs');
  expect(nameOf(null, files)).toBe('');
});

test('the order of fields and fields without a value make no other source', () => {
  expect(isSameSource({ source_type: 'local_file', file_path: 'a' }, { file_path: 'a', source_type: 'local_file', encoding: undefined })).toBe(true);
  expect(isSameSource({ source_type: 'local_file', file_path: 'a' }, null)).toBe(false);
});
