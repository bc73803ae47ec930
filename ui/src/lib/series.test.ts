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

test('thinning keeps evaluations, both ends, and half of the rest', () => {
  const series = new Series();
  for (let step = 0; step <= 100; step += 1) series.add({ step, loss: step });
  series.add({ step: 7, eval_loss: 1 });
  series.add({ step: 101, loss: 101 });
  series.thin();
  const [steps] = series.columns(['loss']);
  expect([steps.length, steps[0], steps.at(-1), steps.includes(7), steps.includes(9)]).toEqual([53, 0, 101, true, false]);
  series.add({ step: 102, loss: 102 });
  expect(series.lastStep).toBe(102);
});

test('smoothing leaves gaps as they are', () => {
  expect(smoothed([1, null, 3], 0.5)).toEqual([1, null, 2]);
});
