import { expect, test } from 'vitest';
import { Series, smoothed } from './series';

test('rows come in any order and more than once, and steps stand once and in order', () => {
  const series = new Series();
  for (const step of [3, 1, 2, 3, 1]) series.add({ step, loss: step / 10 });
  series.add({ step: 2, eval_loss: 0.5, note: 'text', broken: null });
  expect(series.columns(['loss', 'eval_loss'])).toEqual([[1, 2, 3], [0.1, 0.2, 0.3], [null, 0.5, null]]);
  expect([series.size, series.lastStep, series.has('note')]).toEqual([3, 3, false]);
});

test('a chart gets only the steps that have one of its figures, within its range', () => {
  const series = new Series();
  for (let step = 0; step < 10; step += 1) series.add({ step, [step % 2 ? 'loss' : 'eval_loss']: step });
  expect(series.columns(['loss'], 2, 8)).toEqual([[3, 5, 7], [3, 5, 7]]);
});

test('a resume takes the later steps again', () => {
  const series = new Series();
  for (let step = 1; step <= 5; step += 1) series.add({ step, loss: 1 });
  series.rewind(3);
  series.add({ step: 4, loss: 2 });
  expect(series.columns(['loss'])).toEqual([[1, 2, 3, 4], [1, 1, 1, 2]]);
  expect(series.last('loss')).toBe(2);
});

test('a run that is watched for long is drawn evenly from its first step to its last, with its evaluations', () => {
  const series = new Series();
  const most = 50;
  for (let step = 0; step <= 10_000; step += 1) {
    series.add({ step, loss: step, ...(step % 1000 === 7 ? { eval_loss: 1 } : {}) });
    if (series.size >= 3 * most) series.thin(most);
  }
  const [steps] = series.columns(['loss']);
  expect([steps[0], steps.at(-1), series.columns(['eval_loss'])[0].length]).toEqual([0, 10_000, 10]);
  for (let from = 0; from < 10_000; from += 1000) {
    const inside = steps.filter((step) => step >= from && step < from + 1000).length;
    expect(inside).toBeGreaterThanOrEqual(2);
    expect(inside).toBeLessThan(120);
  }
  series.add({ step: 10_001, loss: 1 });
  expect(series.lastStep).toBe(10_001);
});

test('smoothing leaves gaps as they are', () => {
  expect(smoothed([1, null, 3], 0.5)).toEqual([1, null, 2]);
});
