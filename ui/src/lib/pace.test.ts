import { expect, test } from 'vitest';
import { Pace } from './pace';

test('the time left goes by the last steps', () => {
  const pace = new Pace();
  expect(pace.secondsTo(100)).toBeNull();
  pace.see(10, 0);
  expect(pace.secondsTo(100)).toBeNull();
  pace.see(20, 5000);
  expect([pace.secondsPerStep, pace.secondsTo(100)]).toEqual([0.5, 40]);
  expect(pace.secondsTo(null)).toBeNull();
  pace.see(21, 3_600_000);
  pace.see(22, 3_601_000);
  expect(pace.secondsTo(100)).toBe(78);
});

test('steps that are taken again begin the measure anew', () => {
  const pace = new Pace();
  pace.see(1, 0);
  pace.see(101, 1000);
  pace.see(51, 2000);
  expect(pace.secondsTo(100)).toBeNull();
  pace.see(52, 4000);
  expect(pace.secondsTo(102)).toBe(100);
});
