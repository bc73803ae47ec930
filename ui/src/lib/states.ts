/** What a job's state is called, and what can be done in it. */

import type { JobState } from '../api/client';

export const STATE_WORDS: Record<JobState, string> = {
  queued: 'Waiting',
  initializing: 'Starting',
  loading_model: 'Loading model',
  loading_dataset: 'Loading data',
  training: 'Training',
  saving: 'Saving',
  uploading: 'Uploading',
  paused: 'Paused',
  completed: 'Completed',
  failed: 'Failed',
  stopped: 'Stopped',
  cancelled: 'Cancelled',
};

/** What a running job was asked to do and has not done yet. */
export interface Requested {
  stop_requested?: boolean;
  pause_requested?: boolean;
}

/** The state in a word: a running job that was asked to stop or to pause is already on its way there. */
export function stateWord(state: JobState, requested: Requested = {}): string {
  if (!isRunning(state)) return STATE_WORDS[state];
  if (requested.stop_requested) return 'Stopping';
  return requested.pause_requested ? 'Pausing' : STATE_WORDS[state];
}

const ENDED: JobState[] = ['completed', 'failed', 'stopped', 'cancelled'];

export const isEnded = (state: JobState): boolean => ENDED.includes(state);
export const isRunning = (state: JobState): boolean => !isEnded(state) && state !== 'queued' && state !== 'paused';

export type Action = 'pause' | 'resume' | 'stop' | 'rerun' | 'remove';

export function actionsFor(state: JobState, lastCheckpoint: number | null | undefined, requested: Requested = {}): Action[] {
  if (state === 'queued') return ['pause', 'stop'];
  if (state === 'paused') return ['resume', 'stop'];
  if (!isEnded(state)) {
    if (requested.stop_requested) return [];
    return requested.pause_requested || state === 'saving' || state === 'uploading' ? ['stop'] : ['pause', 'stop'];
  }
  const canGoOn = state !== 'completed' && lastCheckpoint != null;
  return canGoOn ? ['resume', 'rerun', 'remove'] : ['rerun', 'remove'];
}

export const ACTION_WORDS: Record<Action, string> = {
  pause: 'Pause',
  resume: 'Resume',
  stop: 'Stop',
  /** Opens the form of a new run with the settings of this one. */
  rerun: 'Run again',
  remove: 'Delete',
};

export const DONE_WORDS: Record<Exclude<Action, 'rerun'>, string> = {
  pause: 'Asked to pause:',
  resume: 'In the queue to go on:',
  stop: 'Asked to stop:',
  remove: 'Deleted:',
};

const STOP_QUESTIONS: Partial<Record<JobState, string>> = {
  paused: 'End this run? It keeps its last checkpoint, but no model is saved.',
  training: 'Stop after the current step? What it has learnt so far is saved, and it can be resumed.',
  saving: 'Stop while the model is being saved? It is given some minutes to finish, and ended then.',
  uploading: 'Stop the upload? The model is on this machine already.',
};

/** What is lost by an action, as a question; null where nothing is, so that nobody needs to be asked. */
export function questionBefore(action: Action, state: JobState): string | null {
  if (action === 'stop' && state === 'queued') return null;
  if (action === 'stop') return STOP_QUESTIONS[state] ?? 'Stop it before it trains? Then no model is saved.';
  if (action === 'remove') return 'Delete this run, with its figures, log and checkpoints? Model files stay where they are.';
  return null;
}
