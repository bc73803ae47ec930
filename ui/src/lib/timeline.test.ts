import { expect, test } from 'vitest';
import { timeline } from './timeline';

const phases = (stops: ReturnType<typeof timeline>): string => stops.map((stop) => `${stop.label}:${stop.phase}`).join(' ');

test('a running job has done what is before its state', () => {
  expect(phases(timeline('loading_dataset', false, null))).toBe(
    'Waiting:done Starting:done Loading model:done Loading data:now Training:to come Saving:to come Completed:to come',
  );
});

test('a failed one ends where it was', () => {
  expect(phases(timeline('failed', false, null))).toBe('Waiting:done Failed:broken');
  expect(timeline('failed', true, 12).at(-2)).toEqual({ label: 'Training', phase: 'done' });
});

test('uploading is on the way only where it is asked for', () => {
  expect(timeline('completed', true, 9).map((stop) => stop.label)).toContain('Uploading');
  expect(timeline('completed', false, 9).map((stop) => stop.label)).not.toContain('Uploading');
});
