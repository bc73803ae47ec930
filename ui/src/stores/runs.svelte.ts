/** All runs as the list shows them: history, queue, and the live figures of those that run. */

import { api, type HistoryEntry, type JobStatus, type QueueStatus } from '../api/client';
import { Pace } from '../lib/pace';
import type { Filter } from '../lib/search';
import { isRunning } from '../lib/states';

/** Kept for those who look at a run and come back. */
export const search = $state<{ words: string; filter: Filter }>({ words: '', filter: 'all' });

const paces = new Map<string, Pace>();

/** Null while too little was seen. */
export interface Speed {
  secondsPerStep: number | null;
  secondsLeft: number | null;
}

export interface Runs {
  all: HistoryEntry[];
  total: number;
  queue: QueueStatus;
  live: Map<string, JobStatus>;
  /** Of those that train, by job. */
  speeds: Map<string, Speed>;
}

export async function loadRuns(): Promise<Runs> {
  const [history, queue] = await Promise.all([api.history(1000), api.queue()]);
  const running = history.jobs.filter((job) => isRunning(job.status));
  const statuses = await Promise.all(running.map((job) => api.status(job.job_id).catch(() => null)));
  const live = new Map(statuses.flatMap((status) => (status ? [[status.job_id, status] as const] : [])));
  const training = [...live.values()].filter((job) => job.status === 'training');
  const speeds = new Map(training.map((job) => [job.job_id, speedOf(job)]));
  return { all: history.jobs, total: history.total, queue, live, speeds };
}

function speedOf(job: JobStatus): Speed {
  const pace = paces.get(job.job_id) ?? new Pace();
  paces.set(job.job_id, pace);
  pace.see(job.current_step ?? 0, Date.now());
  return { secondsPerStep: pace.secondsPerStep, secondsLeft: pace.secondsTo(job.total_steps) };
}
