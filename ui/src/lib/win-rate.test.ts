import { expect, test } from 'vitest';
import { winRateInWords } from './win-rate';

test('few votes tell nothing, many do', () => {
  expect(winRateInWords({ wins: 0, losses: 0, ties: 0 })).toBe('No votes yet.');
  expect(winRateInWords({ wins: 2, losses: 1, ties: 1, win_rate: 0.667, win_rate_low: 0.21, win_rate_high: 0.94 })).toContain('too few votes');
  expect(winRateInWords({ wins: 20, losses: 2, ties: 0, win_rate: 0.91, win_rate_low: 0.72, win_rate_high: 0.97 })).toContain('between 72 % and 97 %: the tuned model is better');
});
