/** All runs as the list shows them: history, queue, and the live figures of those that run. */

import { api, type HistoryEntry, type JobStatus, type QueueStatus } from '../api/client';
import { isRunning } from '../lib/states';

export interface Runs {
  all: HistoryEntry[];
  total: number;
  queue: QueueStatus;
  live: Map<string, JobStatus>;
}

export async function loadRuns(): Promise<Runs> {
  const [history, queue] = await Promise.all([api.history(1000), api.queue()]);
  const running = history.jobs.filter((job) => isRunning(job.status));
  const statuses = await Promise.all(running.map((job) => api.status(job.job_id).catch(() => null)));
  const live = new Map(statuses.flatMap((status) => (status ? [[status.job_id, status] as const] : [])));
  return { all: history.jobs, total: history.total, queue, live };
}
