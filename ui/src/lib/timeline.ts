/** The states a run goes through, as steps of a line: what is done and how long it took, what it is at, what is to come. */

import type { JobState, TimelineEntry } from '../api/client';
import { isEnded, isRunning, STATE_WORDS } from './states';

export interface Stop {
  label: string;
  phase: 'done' | 'now' | 'to come' | 'broken';
  /** How long it was there, or has been by now; null where that says nothing. */
  seconds: number | null;
}

const WAY: JobState[] = ['initializing', 'loading_model', 'loading_dataset', 'training', 'saving'];

/** Of the latest attempt. `now` in milliseconds. */
export function timeline(entries: TimelineEntry[], uploads: boolean, now: number): Stop[] {
  const attempt = entries.at(-1)?.attempt;
  const own = entries.filter((entry) => entry.attempt === attempt);
  const stops = own.map((entry, place): Stop => {
    const next = own[place + 1];
    const isAtEnd = next === undefined && isEnded(entry.state);
    const seconds = isAtEnd ? null : ((next ? Date.parse(next.since) : now) - Date.parse(entry.since)) / 1000;
    return { label: STATE_WORDS[entry.state], phase: next ? 'done' : phaseOf(entry.state), seconds };
  });
  const last = own.at(-1)?.state ?? 'queued';
  if (isEnded(last) || last === 'paused') return stops;
  const way: JobState[] = [...WAY, ...(uploads ? (['uploading'] as const) : []), 'completed'];
  return [...stops, ...way.slice(way.indexOf(last) + 1).map((state): Stop => ({ label: STATE_WORDS[state], phase: 'to come', seconds: null }))];
}

/** When the latest attempt began to run, in milliseconds; 0 where that isn't known. */
export function attemptBegan(entries: TimelineEntry[]): number {
  const attempt = entries.at(-1)?.attempt;
  const began = entries.find((entry) => entry.attempt === attempt && isRunning(entry.state));
  return began ? Date.parse(began.since) : 0;
}

/** Seconds that a worker was at it, over all attempts: pauses and waiting don't count. `now` in milliseconds. */
export function secondsRunning(entries: TimelineEntry[], now: number): number {
  const stretches = entries.map((entry, place) => {
    const next = entries[place + 1];
    return isRunning(entry.state) ? (next ? Date.parse(next.since) : now) - Date.parse(entry.since) : 0;
  });
  return stretches.reduce((sum, stretch) => sum + Math.max(0, stretch), 0) / 1000;
}

function phaseOf(last: JobState): Stop['phase'] {
  if (last === 'completed') return 'done';
  return isEnded(last) ? 'broken' : 'now';
}
