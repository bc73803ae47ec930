/** Which runs a search and a filter leave. */

import type { HistoryEntry } from '../api/client';
import { isEnded, isRunning } from './states';

export type Filter = 'all' | 'running' | 'waiting' | 'completed' | 'failed';

export function matching(runs: HistoryEntry[], words: string, filter: Filter): HistoryEntry[] {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const text = `${run.output_name} ${run.base_model} ${run.job_id} ${run.status}`.toLowerCase();
    return wanted.every((word) => text.includes(word)) && inFilter(run, filter);
  });
}

function inFilter(run: HistoryEntry, filter: Filter): boolean {
  if (filter === 'all') return true;
  if (filter === 'running') return isRunning(run.status);
  if (filter === 'waiting') return run.status === 'queued' || run.status === 'paused';
  if (filter === 'completed') return run.status === 'completed';
  return isEnded(run.status) && run.status !== 'completed';
}
