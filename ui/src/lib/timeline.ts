/** The states a run goes through, as steps of a line: what is done, what it is at, what is to come. */

import type { JobState } from '../api/client';
import { isEnded, STATE_WORDS } from './states';

export interface Stop {
  label: string;
  phase: 'done' | 'now' | 'to come' | 'broken';
}

const WAY: JobState[] = ['queued', 'initializing', 'loading_model', 'loading_dataset', 'training', 'saving', 'uploading'];

export function timeline(state: JobState, uploads: boolean, currentStep: number | null): Stop[] {
  const way = uploads ? WAY : WAY.filter((each) => each !== 'uploading');
  if (state === 'completed') return [...way, state].map((each) => ({ label: STATE_WORDS[each], phase: 'done' }));
  if (isEnded(state) || state === 'paused') {
    const reached = currentStep === null ? 0 : way.indexOf('training');
    const before: Stop[] = way.slice(0, reached + 1).map((each) => ({ label: STATE_WORDS[each], phase: 'done' }));
    return [...before, { label: STATE_WORDS[state], phase: state === 'paused' ? 'now' : 'broken' }];
  }
  const now = way.indexOf(state);
  const phase = (index: number): Stop['phase'] => (index < now ? 'done' : index === now ? 'now' : 'to come');
  return [...way.map((each, index) => ({ label: STATE_WORDS[each], phase: phase(index) })), { label: 'Completed', phase: 'to come' }];
}
