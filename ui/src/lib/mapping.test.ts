import { expect, test } from 'vitest';
import { columnFor, mappingWith } from './mapping';

const columns = ['prompt', 'good', 'bad'];

test('a column with our own name needs no mapping', () => {
  expect(columnFor('prompt', columns, {})).toBe('prompt');
  expect(columnFor('chosen', columns, {})).toBe('');
  expect(mappingWith('prompt', 'prompt', columns, { bad: 'prompt' })).toEqual({});
});

test('a column stands for one of ours only, and the other way round', () => {
  expect(mappingWith('chosen', 'good', columns, { good: 'rejected', bad: 'chosen' })).toEqual({ good: 'chosen' });
  expect(mappingWith('chosen', '', columns, { good: 'chosen' })).toEqual({});
});
