import { expect, test } from 'vitest';
import type { JobState, TimelineEntry } from '../api/client';
import { attemptStart, secondsRunning, stagesOf } from './timeline';

const START = Date.parse('2026-01-01T12:00:00.000+00:00');
const entry = (state: JobState, seconds: number, attempt = 1): TimelineEntry => ({ state, since: new Date(START + seconds * 1000).toISOString(), attempt });
const text = (stages: ReturnType<typeof stagesOf>): string => stages.map((stage) => `${stage.label}:${stage.phase}:${stage.seconds ?? ''}`).join(' ');

test('a running job has completed, current and upcoming stages', () => {
  const entries = [entry('queued', 0), entry('initializing', 2.5), entry('loading_model', 3)];
  expect(text(stagesOf(entries, false, START + 10_000))).toBe(
    'Queued:done:2.5 Starting:done:0.5 Loading model:current:7 Loading data:upcoming: Training:upcoming: Saving:upcoming: Completed:upcoming:',
  );
});

test('an ended job has no upcoming stages', () => {
  const entries = [entry('queued', 0), entry('initializing', 1), entry('failed', 2)];
  expect(text(stagesOf(entries, false, START + 10_000))).toBe('Queued:done:1 Starting:done:1 Failed:failed:');
  expect(stagesOf([entry('queued', 0), entry('completed', 1)], true, START).at(-1)?.phase).toBe('done');
});

test('the upload is a stage only if it is requested', () => {
  expect(stagesOf([entry('queued', 0)], true, START).map((stage) => stage.label)).toContain('Uploading');
  expect(stagesOf([entry('queued', 0)], false, START).map((stage) => stage.label)).not.toContain('Uploading');
});

test('the latest attempt is shown, and a pause is its current stage', () => {
  const entries = [entry('queued', 0), entry('training', 1), entry('paused', 4)];
  expect(text(stagesOf(entries, false, START + 9000))).toBe('Queued:done:1 Training:done:3 Paused:current:5');
  expect(text(stagesOf([...entries, entry('queued', 5, 2), entry('initializing', 6, 2)], false, START + 7000))).toMatch(/^Queued:done:1 Starting:current:1 Loading/);
});

test('pauses and time in the queue do not count as running', () => {
  const entries = [entry('queued', 0), entry('initializing', 5), entry('training', 6), entry('paused', 10), entry('queued', 100, 2), entry('initializing', 110, 2)];
  expect(secondsRunning(entries, START + 112_000)).toBe(7);
  expect(attemptStart(entries)).toBe(START + 110_000);
  expect([secondsRunning([], START), attemptStart([])]).toEqual([0, 0]);
});
