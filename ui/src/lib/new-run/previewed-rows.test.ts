import { expect, test } from 'vitest';
import type { Preview } from '../../api/client';
import { filterOptions, formattedRows, isOfRows, missingPairs, storedRows } from './previewed-rows';

const preview = {
  samples: [{ row: 7, prompt: 'a' }, { row: 7, prompt: 'b' }],
  rows: [
    { row: 7, last_row: 8, stored: [{ q: 1 }, { q: 2 }], pairs: 3, findings: ['over_max_length'], reason: null },
    { row: 9, last_row: 9, stored: [{ q: 3 }], pairs: 0, findings: ['empty_side'], reason: 'chosen is empty' },
  ],
} as unknown as Preview;

test('each row has its own samples', () => {
  const [merged, unusable] = formattedRows(preview);
  expect([merged?.row, merged?.lastRow, merged?.samples.length]).toEqual([7, 8, 2]);
  expect(missingPairs(merged!)).toBe('The first 2 of 3 pairs are shown.');
  expect(missingPairs(unusable!)).toBe('This row cannot be used: chosen is empty.');
});

test('stored rows are numbered from the requested one', () => {
  expect(storedRows({ samples: [{ q: 1 }, { q: 2 }] } as unknown as Preview, 41).map(({ row }) => row)).toEqual([41, 42]);
});

test('the filter offers the kinds that were found, and the selected one', () => {
  expect(filterOptions(['over_max_length', 'length_bias'], 'duplicates').map(([kind]) => kind)).toEqual(['', 'findings', 'duplicates', 'over_max_length']);
  expect(isOfRows('length_bias')).toBe(false);
});
