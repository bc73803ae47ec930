import { expect, test } from 'vitest';
import { datasetOf, draftFromConfig } from './draft';
import { previewParts } from './preview-parts';

test('each selected source is previewed as a data set of its own', () => {
  const file = (name: string): object => ({ source_type: 'local_file', file_path: `/data/${name}` });
  const dataset = { sources: [{ source: file('a') }, { source: file('b'), column_mapping: {}, max_samples: 3 }], eval_source: file('c'), column_mapping: { q: 'prompt' }, drop_duplicates: true };
  const { data } = draftFromConfig({ dataset });
  const parts = previewParts({ ...data, sources: [...data.sources, { ...data.sources[0]!, key: 2, source: null }] }, new Map());
  expect(parts.map(({ label }) => label)).toEqual(['Source 1: a', 'Source 2: b', 'Evaluation set: c']);
  const [first, second, evaluation] = parts.map((part) => datasetOf(part.data, ''));
  expect(first).toMatchObject({ source: file('a'), column_mapping: { q: 'prompt' }, drop_duplicates: true });
  expect(second).toMatchObject({ source: file('b'), column_mapping: null, max_samples: 3, drop_duplicates: true });
  expect(evaluation).toMatchObject({ source: file('c'), column_mapping: { q: 'prompt' } });
  for (const each of [first, second, evaluation]) expect(Object.keys(each ?? {})).not.toContain('sources');
});
