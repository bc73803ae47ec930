import { expect, test } from 'vitest';
import { canBeMapped, isRanked, ROW_FORMATS } from './row-formats';

test('every format has one title', () => {
  expect(new Set(ROW_FORMATS.map(([, title]) => title)).size).toBe(ROW_FORMATS.length);
});

test('only standard and unknown rows need a mapping', () => {
  expect(['', 'standard', 'alpaca'].map(canBeMapped)).toEqual([true, true, false]);
  expect(['nectar', 'arena', ''].map(isRanked)).toEqual([true, false, false]);
});
