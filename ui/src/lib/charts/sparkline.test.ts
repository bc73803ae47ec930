import { expect, test } from 'vitest';
import { sparkline } from './sparkline';

test('the line runs from left to right, with the largest value at the top', () => {
  expect(sparkline([3, 1, 2], 100, 20)).toBe('0.0,0.0 50.0,20.0 100.0,10.0');
  expect(sparkline([2, 2], 10, 20)).toBe('0.0,10.0 10.0,10.0');
  expect([sparkline([], 10, 10), sparkline([1], 10, 10)]).toEqual(['', '']);
});
