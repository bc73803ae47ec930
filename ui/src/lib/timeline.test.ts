import { expect, test } from 'vitest';
import type { JobState, TimelineEntry } from '../api/client';
import { attemptBegan, secondsRunning, timeline } from './timeline';

const BEGAN = Date.parse('2026-01-01T12:00:00.000+00:00');
const entry = (state: JobState, seconds: number, attempt = 1): TimelineEntry => ({ state, since: new Date(BEGAN + seconds * 1000).toISOString(), attempt });
const said = (stops: ReturnType<typeof timeline>): string => stops.map((stop) => `${stop.label}:${stop.phase}:${stop.seconds ?? ''}`).join(' ');

test('a running job has done what is before its state, and is at it until now', () => {
  const entries = [entry('queued', 0), entry('initializing', 2.5), entry('loading_model', 3)];
  expect(said(timeline(entries, false, BEGAN + 10_000))).toBe(
    'Waiting:done:2.5 Starting:done:0.5 Loading model:now:7 Loading data:to come: Training:to come: Saving:to come: Completed:to come:',
  );
});

test('one that ended shows where, and that it went no further', () => {
  const entries = [entry('queued', 0), entry('initializing', 1), entry('failed', 2)];
  expect(said(timeline(entries, false, BEGAN + 10_000))).toBe('Waiting:done:1 Starting:done:1 Failed:broken:');
  expect(timeline([entry('queued', 0), entry('completed', 1)], true, BEGAN).at(-1)?.phase).toBe('done');
});

test('uploading is on the way only where it is asked for', () => {
  expect(timeline([entry('queued', 0)], true, BEGAN).map((stop) => stop.label)).toContain('Uploading');
  expect(timeline([entry('queued', 0)], false, BEGAN).map((stop) => stop.label)).not.toContain('Uploading');
});

test('of several attempts the latest is shown, and a pause is where it is', () => {
  const entries = [entry('queued', 0), entry('training', 1), entry('paused', 4)];
  expect(said(timeline(entries, false, BEGAN + 9000))).toBe('Waiting:done:1 Training:done:3 Paused:now:5');
  expect(said(timeline([...entries, entry('queued', 5, 2), entry('initializing', 6, 2)], false, BEGAN + 7000))).toMatch(/^Waiting:done:1 Starting:now:1 Loading/);
});

test('pauses and waiting are no running', () => {
  const entries = [entry('queued', 0), entry('initializing', 5), entry('training', 6), entry('paused', 10), entry('queued', 100, 2), entry('initializing', 110, 2)];
  expect(secondsRunning(entries, BEGAN + 112_000)).toBe(7);
  expect(attemptBegan(entries)).toBe(BEGAN + 110_000);
  expect([secondsRunning([], BEGAN), attemptBegan([])]).toEqual([0, 0]);
});
