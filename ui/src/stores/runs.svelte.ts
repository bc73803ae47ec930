/** The list of runs: history, queue, and the status of running jobs. */

import { api, type HistoryEntry, type JobStatus, type QueueStatus } from '../api/client';
import { StepRate } from '../lib/charts/step-rate';
import type { Filter } from '../lib/search';
import { isRunning } from '../lib/states';

/** Survives navigation to a run and back. */
export const search = $state<{ query: string; filter: Filter }>({ query: '', filter: 'all' });

const rates = new Map<string, StepRate>();

/** Null until two steps were observed. */
export interface Speed {
  secondsPerStep: number | null;
  secondsRemaining: number | null;
}

export interface Runs {
  all: HistoryEntry[];
  total: number;
  queue: QueueStatus;
  live: Map<string, JobStatus>;
  /** Speeds of training jobs, by job id. */
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
  const rate = rates.get(job.job_id) ?? new StepRate();
  rates.set(job.job_id, rate);
  rate.record(job.current_step ?? 0, Date.now());
  return { secondsPerStep: rate.secondsPerStep, secondsRemaining: rate.secondsUntil(job.total_steps) };
}
