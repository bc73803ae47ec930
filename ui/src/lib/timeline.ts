/** The stages of a run: completed ones with their duration, the current one, and those to come. */

import type { JobState, TimelineEntry } from '../api/client';
import { isEnded, isRunning, STATE_LABELS } from './states';

export interface Stage {
  label: string;
  phase: 'done' | 'current' | 'upcoming' | 'failed';
  /** Seconds spent in this stage until its end or until now; null for upcoming stages and final states. */
  seconds: number | null;
}

const ORDER: JobState[] = ['initializing', 'loading_model', 'loading_dataset', 'training', 'saving'];

/** Return the stages of the latest attempt. `now` in milliseconds. */
export function stagesOf(entries: TimelineEntry[], uploads: boolean, now: number): Stage[] {
  const attempt = entries.at(-1)?.attempt;
  const own = entries.filter((entry) => entry.attempt === attempt);
  const stages = own.map((entry, index): Stage => {
    const next = own[index + 1];
    const isFinal = next === undefined && isEnded(entry.state);
    const seconds = isFinal ? null : ((next ? Date.parse(next.since) : now) - Date.parse(entry.since)) / 1000;
    return { label: STATE_LABELS[entry.state], phase: next ? 'done' : lastPhase(entry.state), seconds };
  });
  const last = own.at(-1)?.state ?? 'queued';
  if (isEnded(last) || last === 'paused') return stages;
  const order: JobState[] = [...ORDER, ...(uploads ? (['uploading'] as const) : []), 'completed'];
  return [...stages, ...order.slice(order.indexOf(last) + 1).map((state): Stage => ({ label: STATE_LABELS[state], phase: 'upcoming', seconds: null }))];
}

/** Return when the latest attempt started to run, in milliseconds; 0 if it has not. */
export function attemptStart(entries: TimelineEntry[]): number {
  const attempt = entries.at(-1)?.attempt;
  const first = entries.find((entry) => entry.attempt === attempt && isRunning(entry.state));
  return first ? Date.parse(first.since) : 0;
}

/** Return the seconds in which a worker ran, over all attempts, without pauses and time in the queue. `now` in milliseconds. */
export function secondsRunning(entries: TimelineEntry[], now: number): number {
  const durations = entries.map((entry, index) => {
    const next = entries[index + 1];
    return isRunning(entry.state) ? (next ? Date.parse(next.since) : now) - Date.parse(entry.since) : 0;
  });
  return durations.reduce((sum, each) => sum + Math.max(0, each), 0) / 1000;
}

function lastPhase(state: JobState): Stage['phase'] {
  if (state === 'completed') return 'done';
  return isEnded(state) ? 'failed' : 'current';
}
