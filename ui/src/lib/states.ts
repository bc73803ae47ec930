/** Labels of job states, and the actions that each state allows. */

import type { JobState } from '../api/client';

export const STATE_LABELS: Record<JobState, string> = {
  queued: 'Queued',
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

/** Stop and pause requests that the worker has not completed. */
export interface PendingRequests {
  stop_requested?: boolean;
  pause_requested?: boolean;
}

/** Return the label of a state, or `Stopping` or `Pausing` while a running job has such a request. */
export function stateLabel(state: JobState, requests: PendingRequests = {}): string {
  if (!isRunning(state)) return STATE_LABELS[state];
  if (requests.stop_requested) return 'Stopping';
  return requests.pause_requested ? 'Pausing' : STATE_LABELS[state];
}

const WAITING: JobState[] = ['queued', 'paused'];
const ENDED: JobState[] = ['completed', 'failed', 'stopped', 'cancelled'];
/** Too little work remains in these states for a pause to be useful. */
const FINISHING: JobState[] = ['saving', 'uploading'];

export const isWaiting = (state: JobState): boolean => WAITING.includes(state);
export const isEnded = (state: JobState): boolean => ENDED.includes(state);
export const isRunning = (state: JobState): boolean => !isEnded(state) && !isWaiting(state);

export type Action = 'pause' | 'resume' | 'stop' | 'duplicate' | 'delete';

export function actionsFor(state: JobState, lastCheckpoint: number | null | undefined, requests: PendingRequests = {}): Action[] {
  if (state === 'queued') return ['pause', 'stop'];
  if (state === 'paused') return ['resume', 'stop'];
  if (isRunning(state)) {
    if (requests.stop_requested) return [];
    return requests.pause_requested || FINISHING.includes(state) ? ['stop'] : ['pause', 'stop'];
  }
  const canResume = state !== 'completed' && lastCheckpoint != null;
  return canResume ? ['resume', 'duplicate', 'delete'] : ['duplicate', 'delete'];
}

export const ACTION_LABELS: Record<Action, string> = {
  pause: 'Pause',
  resume: 'Resume',
  stop: 'Stop',
  /** Opens the form of a new run with the settings of this one. */
  duplicate: 'Duplicate',
  delete: 'Delete',
};

/** Announced to screen readers, followed by the name of the run. */
export const ACTION_ANNOUNCEMENTS: Record<Exclude<Action, 'duplicate'>, string> = {
  pause: 'Pause requested:',
  resume: 'Queued to resume:',
  stop: 'Stop requested:',
  delete: 'Deleted:',
};

/** Return the label of the button that closes the confirmation without the action. */
export function cancelLabel(action: Action, state: JobState): string {
  if (action !== 'stop') return 'Cancel';
  return state === 'training' ? 'Keep training' : 'Keep run';
}

const STOP_CONFIRMATIONS: Partial<Record<JobState, string>> = {
  paused: 'End this run? Its last checkpoint is kept, but no model is saved.',
  training: 'Stop after the current step? The model is saved, and the run can be resumed.',
  saving: 'Stop while the model is being saved? The run has a few minutes to finish before it is killed.',
  uploading: 'Stop the upload? The model is already saved on this machine.',
};

/** Return the question to confirm before an action that loses something; null for all others. */
export function confirmationFor(action: Action, state: JobState): string | null {
  if (action === 'stop' && state === 'queued') return null;
  if (action === 'stop') return STOP_CONFIRMATIONS[state] ?? 'Stop before training starts? No model is saved.';
  if (action === 'delete') return 'Delete this run with its metrics, log and checkpoints? Model files are kept.';
  return null;
}
