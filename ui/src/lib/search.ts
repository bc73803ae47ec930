/** Search and filter of the list of runs. */

import type { HistoryEntry } from '../api/client';
import { isEnded, isRunning, isWaiting } from './states';

export type Filter = 'all' | 'running' | 'waiting' | 'completed' | 'failed';

/** Return the runs that contain every word of `query` and belong to `filter`. */
export function matching(runs: HistoryEntry[], query: string, filter: Filter): HistoryEntry[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const text = `${run.output_name} ${run.base_model} ${run.job_id} ${run.status}`.toLowerCase();
    return words.every((word) => text.includes(word)) && isInFilter(run, filter);
  });
}

function isInFilter(run: HistoryEntry, filter: Filter): boolean {
  if (filter === 'all') return true;
  if (filter === 'running') return isRunning(run.status);
  if (filter === 'waiting') return isWaiting(run.status);
  if (filter === 'completed') return run.status === 'completed';
  return isEnded(run.status) && run.status !== 'completed';
}
