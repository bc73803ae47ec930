import { expect, test } from 'vitest';
import { Series, smoothed } from './series';

test('repeated rows in any order give unique, sorted steps', () => {
  const series = new Series();
  for (const step of [3, 1, 2, 3, 1]) series.add({ step, loss: step / 10 });
  series.add({ step: 2, eval_loss: 0.5, note: 'text', broken: null });
  expect(series.columns(['loss', 'eval_loss'])).toEqual([[1, 2, 3], [0.1, 0.2, 0.3], [null, 0.5, null]]);
  expect([series.size, series.lastStep, series.has('note')]).toEqual([3, 3, false]);
});

test('columns contain only steps in range that have one of the metrics', () => {
  const series = new Series();
  for (let step = 0; step < 10; step += 1) series.add({ step, [step % 2 ? 'loss' : 'eval_loss']: step });
  expect(series.columns(['loss'], 2, 8)).toEqual([[3, 5, 7], [3, 5, 7]]);
});

test('a resumed run repeats later steps', () => {
  const series = new Series();
  for (let step = 1; step <= 5; step += 1) series.add({ step, loss: 1 });
  series.truncateAfter(3);
  series.add({ step: 4, loss: 2 });
  expect(series.columns(['loss'])).toEqual([[1, 2, 3, 4], [1, 1, 1, 2]]);
  expect(series.last('loss')).toBe(2);
});

test('downsampling keeps evenly spaced steps and all evaluations', () => {
  const series = new Series();
  const max = 50;
  for (let step = 0; step <= 10_000; step += 1) {
    series.add({ step, loss: step, ...(step % 1000 === 7 ? { eval_loss: 1 } : {}) });
    if (series.size >= 3 * max) series.downsample(max);
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

test('smoothing keeps gaps', () => {
  expect(smoothed([1, null, 3], 0.5)).toEqual([1, null, 2]);
});
