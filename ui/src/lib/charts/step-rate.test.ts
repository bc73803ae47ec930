import { expect, test } from 'vitest';
import { StepRate } from './step-rate';

test('the remaining time follows from recent steps', () => {
  const rate = new StepRate();
  expect(rate.secondsUntil(100)).toBeNull();
  rate.record(10, 0);
  expect(rate.secondsUntil(100)).toBeNull();
  rate.record(20, 5000);
  expect([rate.secondsPerStep, rate.secondsUntil(100)]).toEqual([0.5, 40]);
  expect(rate.secondsUntil(null)).toBeNull();
  rate.record(21, 3_600_000);
  rate.record(22, 3_601_000);
  expect(rate.secondsUntil(100)).toBe(78);
});

test('a repeated step restarts the measurement', () => {
  const rate = new StepRate();
  rate.record(1, 0);
  rate.record(101, 1000);
  rate.record(51, 2000);
  expect(rate.secondsUntil(100)).toBeNull();
  rate.record(52, 4000);
  expect(rate.secondsUntil(102)).toBe(100);
});
