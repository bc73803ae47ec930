import { expect, test } from 'vitest';
import { median, secondsOf } from './estimate';

const speed = { tokensPerSecond: 100, run: 'earlier' };

test('all steps at the speed of an earlier run', () => {
  const measured = { rows: 100, tokensPerPair: 50 };
  const values = { batch_size: 1, gradient_accumulation_steps: 10, num_epochs: 2 };
  expect(secondsOf(values, 0.1, measured, speed)).toBe((18 * 10 * 50) / 100);
  expect(secondsOf({ ...values, max_steps: 4 }, 0.1, measured, speed)).toBe((4 * 10 * 50) / 100);
});

test('what is not known is not guessed', () => {
  expect(secondsOf({}, 0, { rows: null, tokensPerPair: 5 }, speed)).toBeNull();
  expect(secondsOf({}, 0, { rows: 5, tokensPerPair: 5 }, null)).toBeNull();
  expect([median([]), median([3, 1, 2])]).toEqual([null, 2]);
});
