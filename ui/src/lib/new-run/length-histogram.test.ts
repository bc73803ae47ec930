import { expect, test } from 'vitest';
import type { LengthHistogram } from '../../api/client';
import { axisEnd, barsOf, describeLengths } from './length-histogram';

const histogram: LengthHistogram = { unit: 'tokens', edges: [0, 100, 200, 9001], counts: [4, 8, 1], median: 120, longest: 9000 };

test('bars are relative to the highest one and marked beyond the maximum length', () => {
  expect(barsOf(histogram, 199)).toEqual([
    { share: 0.5, label: '0 to 99 tokens: 4 pairs', isOver: false },
    { share: 1, label: '100 to 199 tokens: 8 pairs', isOver: false },
    { share: 0.125, label: '200 to 9,000 tokens: 1 pair', isOver: true },
  ]);
  expect(barsOf({ ...histogram, unit: 'characters' }, 10).some(({ isOver }) => isOver)).toBe(false);
});

test('the description states how many rows were examined', () => {
  expect(describeLengths(histogram, 500)).toBe('Lengths of 13 pairs in the first 500 rows, in tokens: median 120, longest 9,000.');
});

test('the end of the axis names the range of a wider last bin', () => {
  expect(axisEnd(histogram)).toBe('200 to 9,000 tokens');
  expect(axisEnd({ ...histogram, edges: [0, 100, 200, 300], longest: 250 })).toBe('250 tokens');
});
