import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import type { JobState } from '../api/client';
import { actionsFor, confirmationFor, isEnded, isRunning, isWaiting, STATE_LABELS, stateLabel } from './states';

const states = Object.keys(STATE_LABELS) as JobState[];

test('the states are those of the API', () => {
  const { components } = JSON.parse(readFileSync('src/api/openapi.json', 'utf8'));
  expect(states).toEqual(components.schemas.JobStatus.properties.status.enum);
});

test('each state is exactly one of waiting, running and ended', () => {
  for (const state of states) expect([isWaiting, isRunning, isEnded].filter((is) => is(state))).toHaveLength(1);
  expect([isEnded('paused'), isRunning('paused'), isRunning('loading_model')]).toEqual([false, false, true]);
});

test('an ended run can be resumed only from a checkpoint', () => {
  expect(actionsFor('failed', 40)).toContain('resume');
  expect(actionsFor('failed', null)).not.toContain('resume');
  expect(actionsFor('completed', 40)).not.toContain('resume');
});

test('only actions that lose something need a confirmation', () => {
  expect(confirmationFor('pause', 'training')).toBeNull();
  expect(confirmationFor('stop', 'queued')).toBeNull();
  expect(confirmationFor('stop', 'training')).toContain('saved');
  expect(confirmationFor('delete', 'completed')).toContain('Delete');
});

test('a requested stop or pause is shown, and cannot be requested again', () => {
  expect(stateLabel('training', { pause_requested: true })).toBe('Pausing');
  expect(stateLabel('training', { stop_requested: true, pause_requested: true })).toBe('Stopping');
  expect(stateLabel('stopped', { stop_requested: true })).toBe('Stopped');
  expect(actionsFor('training', 3, { pause_requested: true })).toEqual(['stop']);
  expect(actionsFor('training', 3, { stop_requested: true })).toEqual([]);
});
