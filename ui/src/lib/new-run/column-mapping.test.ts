import { expect, test } from 'vitest';
import { columnFor, standardColumns, withColumn } from './column-mapping';

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

test('single answers and labels are offered for KTO, and while they are mapped', () => {
  const names = (mode: string, mapping = {}): string[] => standardColumns(mode, mapping).map(({ name }) => name);
  expect(names('dpo')).toEqual(['prompt', 'chosen', 'rejected', 'system', 'reasoning']);
  expect(names('kto')).toEqual(['prompt', 'chosen', 'rejected', 'completion', 'label', 'system', 'reasoning']);
  expect(names('dpo', { thumb: 'label' })).toContain('label');
  expect(standardColumns('kto', {}).some(({ isRequired }) => isRequired)).toBe(false);
});
