import { expect, test } from 'vitest';
import { columnFor, withColumn } from './column-mapping';

const columns = ['prompt', 'good', 'bad'];

test('a column with a standard name needs no entry', () => {
  expect(columnFor('prompt', columns, {})).toBe('prompt');
  expect(columnFor('chosen', columns, {})).toBe('');
  expect(withColumn('prompt', 'prompt', columns, { bad: 'prompt' })).toEqual({});
});

test('each column maps to one standard column at most, and vice versa', () => {
  expect(withColumn('chosen', 'good', columns, { good: 'rejected', bad: 'chosen' })).toEqual({ good: 'chosen' });
  expect(withColumn('chosen', '', columns, { good: 'chosen' })).toEqual({});
});
