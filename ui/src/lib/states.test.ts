import { expect, test } from 'vitest';
import { actionsFor, isEnded, isRunning, questionBefore, stateWord } from './states';

test('a run can be resumed only where it has something to go on from', () => {
  expect(actionsFor('failed', 40)).toContain('resume');
  expect(actionsFor('failed', null)).not.toContain('resume');
  expect(actionsFor('completed', 40)).not.toContain('resume');
});

test('people are asked only where something is lost', () => {
  expect(questionBefore('pause', 'training')).toBeNull();
  expect(questionBefore('stop', 'queued')).toBeNull();
  expect(questionBefore('stop', 'training')).toContain('saved');
  expect(questionBefore('remove', 'completed')).toContain('Delete');
});

test('a requested stop or pause is shown, and cannot be requested again', () => {
  expect(stateWord('training', { pause_requested: true })).toBe('Pausing');
  expect(stateWord('training', { stop_requested: true, pause_requested: true })).toBe('Stopping');
  expect(stateWord('stopped', { stop_requested: true })).toBe('Stopped');
  expect(actionsFor('training', 3, { pause_requested: true })).toEqual(['stop']);
  expect(actionsFor('training', 3, { stop_requested: true })).toEqual([]);
});

test('a paused run neither runs nor has ended', () => {
  expect([isEnded('paused'), isRunning('paused'), isRunning('loading_model')]).toEqual([false, false, true]);
});
