import { expect, test } from 'vitest';
import { actionsFor, isEnded, isRunning, questionBefore } from './states';

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

test('a paused run neither runs nor has ended', () => {
  expect([isEnded('paused'), isRunning('paused'), isRunning('loading_model')]).toEqual([false, false, true]);
});
