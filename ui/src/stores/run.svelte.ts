/** One run, as it was and as it goes on. */

import { api, ApiError, asApiError, type JobStatus, type LogLine, type TimelineEntry } from '../api/client';
import { LiveRun, type Connection, type Message } from '../api/live';
import { Pace } from '../lib/pace';
import { Series, type Row } from '../lib/series';
import { isEnded } from '../lib/states';
import { attemptBegan } from '../lib/timeline';
import { page } from './page.svelte';

/** More than a chart has pixels. The server thins longer runs to this, and the page those that grow while it looks. */
const POINTS = 1500;
const MOST_POINTS = 3 * POINTS;
const DRAW_EVERY = 100;
const RETRY_AFTER = 2000;

export interface Range {
  from: number;
  to: number;
}

interface Arrived {
  row: Row;
  /** Milliseconds. */
  at: number;
}

export class Run {
  status = $state.raw<JobStatus | null>(null);
  /** Of the result; it never changes, so that what depends on it is not made anew with every status. */
  name = $state('');
  logs = $state.raw<LogLine[]>([]);
  timeline = $state.raw<TimelineEntry[]>([]);
  config = $state.raw<Record<string, unknown> | null>(null);
  connection = $state<Connection>('connecting');
  error = $state<ApiError | null>(null);
  /** Counts up whenever `series` has changed, at most ten times a second. */
  version = $state(0);
  readonly series = new Series();
  pace = new Pace();
  #live: LiveRun | null = null;
  /** Rows that came while all others were asked for. */
  #arriving: Arrived[] | null = null;
  #drawTimer = 0;
  #retryTimer = 0;
  #attempt = 1;
  #isThinned = false;
  #range: Range | null = null;
  /** Counts loads: what a load before the latest one finds is of no use any more. */
  #loads = 0;

  constructor(readonly job: string) {
    void this.#load();
  }

  /** A figure of the saved model, once there is one; until then the newest. */
  figure(name: string): number | null {
    const final = this.status?.final_metrics;
    return final?.kept_step != null ? (final[`final_${name}`] ?? null) : this.series.last(name);
  }

  close(): void {
    this.#loads += 1;
    this.#live?.close();
    clearTimeout(this.#drawTimer);
    clearTimeout(this.#retryTimer);
  }

  /** Takes up again after something was done that changes the job's course. */
  async again(): Promise<void> {
    await this.#load();
  }

  /** The rows of a range in full, where the whole run was thinned; null for no range. */
  async refine(range: Range | null): Promise<void> {
    this.#range = range;
    if (!range || !this.#isThinned) return;
    const load = this.#loads;
    const part = { since_step: Math.max(0, Math.floor(range.from)), until_step: Math.max(0, Math.ceil(range.to)) };
    const answer = await api.metrics(this.job, { ...part, max_points: POINTS }).catch(() => null);
    if (load !== this.#loads || range !== this.#range || !answer) return;
    for (const row of answer.metrics) this.series.add(row as unknown as Row);
    this.#changed();
  }

  async #load(): Promise<void> {
    const load = ++this.#loads;
    this.#live?.close();
    this.#live = null;
    clearTimeout(this.#retryTimer);
    try {
      const status = await api.status(this.job);
      const [logs, config, timeline] = await Promise.all([api.logs(this.job), api.config(this.job), api.timeline(this.job)]);
      if (load !== this.#loads) return;
      this.#take(status, timeline.states);
      this.logs = logs.logs;
      this.config = config as unknown as Record<string, unknown>;
      await this.#loadFigures();
      if (load !== this.#loads) return;
      this.error = null;
      if (isEnded(status.status)) this.connection = 'ended';
      else this.#live = new LiveRun(this.job, status.seq, this.#hear, this.#onConnection);
    } catch (error) {
      if (load !== this.#loads) return;
      this.error = asApiError(error);
      if (this.error.isPassing) this.#retryTimer = window.setTimeout(() => void this.#load(), RETRY_AFTER);
    }
  }

  #take(status: JobStatus, timeline: TimelineEntry[]): void {
    if (status.attempt !== this.#attempt) this.pace = new Pace();
    this.status = status;
    this.name = status.output_name;
    this.timeline = timeline;
    this.#attempt = status.attempt;
  }

  #onConnection = (connection: Connection): void => {
    this.connection = connection;
    if (connection === 'broken' || !page.isReachable) void page.checkSession();
    if (connection === 'ended') void this.#refreshStatus();
  };

  #hear = (message: Message): void => {
    if (message.type === 'metrics') {
      const step = message.step as number;
      // A resumed run takes steps again, from its checkpoint on.
      if (!this.#arriving && step < this.series.lastStep) this.series.rewind(step);
      this.#add({ step, ...(message.metrics as Record<string, unknown>) }, message.timestamp * 1000);
      this.#changed();
    } else if (message.type === 'log') {
      this.#log(message);
    } else if (message.type === 'request' && this.status) {
      this.status = { ...this.status, stop_requested: message.stop_requested === true, pause_requested: message.pause_requested === true };
    } else if (message.type === 'status_update' && this.status) {
      const moved = message.status !== this.status.status;
      const { type: _type, timestamp: _timestamp, job_id: _job, ...changes } = message;
      this.status = { ...this.status, ...(changes as Partial<JobStatus>) };
      if (moved) void this.#refreshStatus();
    }
  };

  #log(message: Message): void {
    if (this.logs.some((line) => line.seq === message.seq)) return;
    const timestamp = new Date(message.timestamp * 1000).toISOString();
    const line = { seq: message.seq, timestamp, level: message.level, message: message.message } as LogLine;
    this.logs = [...this.logs, line];
  }

  /** What the messages don't carry: times, attempt, error, where the model lies. */
  async #refreshStatus(): Promise<void> {
    const load = this.#loads;
    try {
      const [status, timeline] = await Promise.all([api.status(this.job), api.timeline(this.job)]);
      if (load !== this.#loads) return;
      const isAnother = status.attempt !== this.#attempt;
      this.#take(status, timeline.states);
      if (isAnother) await this.#loadFigures();
    } catch (error) {
      if (load === this.#loads && error instanceof ApiError && error.status === 404) this.error = error;
    }
  }

  /** All figures anew: steps that are taken again replace those taken before. */
  async #loadFigures(): Promise<void> {
    const load = this.#loads;
    const later: Arrived[] = [];
    this.#arriving = later;
    try {
      const metrics = await api.metrics(this.job, { max_points: POINTS });
      if (load !== this.#loads) return;
      this.#isThinned = metrics.count < metrics.total;
      this.#arriving = null;
      this.series.rewind(-1);
      for (const row of metrics.metrics) this.#add(row as unknown as Row, Date.parse(row.timestamp));
      for (const { row, at } of later) this.#add(row, at);
      this.#changed();
    } finally {
      if (this.#arriving === later) this.#arriving = null;
    }
    await this.refine(this.#range);
  }

  #add(row: Row, at: number): void {
    this.series.add(row);
    this.#arriving?.push({ row, at });
    if (at >= attemptBegan(this.timeline)) this.pace.see(row.step, at);
    if (this.series.size < MOST_POINTS) return;
    this.series.thin(POINTS);
    this.#isThinned = true;
    void this.refine(this.#range);
  }

  #changed(): void {
    if (this.#drawTimer) return;
    this.#drawTimer = window.setTimeout(() => {
      this.#drawTimer = 0;
      this.version += 1;
    }, DRAW_EVERY);
  }
}
