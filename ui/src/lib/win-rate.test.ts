import { expect, test } from 'vitest';
import { describeWinRate } from './win-rate';

test('the verdict depends on whether the confidence interval contains one half', () => {
  expect(describeWinRate({ wins: 0, losses: 0, ties: 0 })).toBe('No votes yet.');
  expect(describeWinRate({ wins: 2, losses: 1, ties: 1, win_rate: 0.667, win_rate_low: 0.21, win_rate_high: 0.94 })).toContain('More votes are needed');
  expect(describeWinRate({ wins: 20, losses: 2, ties: 0, win_rate: 0.91, win_rate_low: 0.72, win_rate_high: 0.97 })).toContain('72% to 97%). The fine-tuned model is better.');
});
