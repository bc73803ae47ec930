/** One run, as it was and as it goes on. */

import { api, ApiError, type JobStatus, type LogLine, type TimelineEntry } from '../api/client';
import { LiveRun, type Connection, type Message } from '../api/live';
import { Pace } from '../lib/pace';
import { Series, type Row } from '../lib/series';
import { isEnded } from '../lib/states';
import { page } from './page.svelte';

/** More than a screen has pixels; the server thins longer runs to this, and a run that is watched to twice as many. */
const POINTS = 1500;
const DRAW_EVERY = 100;

interface Arrived {
  row: Row;
  /** Milliseconds. */
  at: number;
}

export class Run {
  status = $state.raw<JobStatus | null>(null);
  logs = $state.raw<LogLine[]>([]);
  timeline = $state.raw<TimelineEntry[]>([]);
  config = $state.raw<Record<string, unknown> | null>(null);
  connection = $state<Connection>('connecting');
  error = $state<ApiError | null>(null);
  /** Counts up whenever `series` has changed, at most ten times a second. */
  version = $state(0);
  readonly series = new Series();
  readonly pace = new Pace();
  #live: LiveRun | null = null;
  /** Rows that came while all others were asked for. */
  #arriving: Arrived[] | null = null;
  #drawTimer = 0;
  #attempt = 1;
  #isThinned = false;
  #isClosed = false;

  constructor(readonly job: string) {
    void this.#load();
  }

  close(): void {
    this.#isClosed = true;
    this.#live?.close();
    clearTimeout(this.#drawTimer);
  }

  /** Takes up again after something was done that changes the job's course. */
  async again(): Promise<void> {
    this.#live?.close();
    await this.#load();
  }

  /** The rows of a range in full, where the whole run was thinned. */
  async refine(from: number, to: number): Promise<void> {
    if (!this.#isThinned) return;
    const range = { since_step: Math.max(0, Math.floor(from)), until_step: Math.max(0, Math.ceil(to)) };
    try {
      const answer = await api.metrics(this.job, { ...range, max_points: POINTS });
      for (const row of answer.metrics) this.series.add(row as unknown as Row);
      this.#changed();
    } catch (error) {
      page.heard(error);
    }
  }

  async #load(): Promise<void> {
    try {
      const status = await api.status(this.job);
      const [logs, config, timeline] = await Promise.all([api.logs(this.job), api.config(this.job), api.timeline(this.job), this.#loadFigures()]);
      if (this.#isClosed) return;
      this.timeline = timeline.states;
      page.heard();
      this.status = status;
      this.#attempt = status.attempt;
      this.logs = logs.logs;
      this.config = config as unknown as Record<string, unknown>;
      this.error = null;
      if (isEnded(status.status)) this.connection = 'ended';
      else this.#live = new LiveRun(this.job, status.seq, this.#take, this.#onConnection);
    } catch (error) {
      if (this.#isClosed) return;
      page.heard(error);
      this.error = error instanceof ApiError ? error : new ApiError(0, String(error));
      if (this.error.status === 0) this.#drawTimer = window.setTimeout(() => void this.#load(), 2000);
    }
  }

  #onConnection = (connection: Connection): void => {
    this.connection = connection;
    if (connection === 'live') page.isReachable = true;
    if (connection === 'broken') void page.checkSession();
    if (connection === 'ended') void this.#refreshStatus();
  };

  #take = (message: Message): void => {
    if (message.type === 'metrics') {
      this.#add({ step: message.step as number, ...(message.metrics as Record<string, unknown>) }, message.timestamp * 1000);
      this.#changed();
    } else if (message.type === 'log') {
      this.#log(message);
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
    try {
      const [status, timeline] = await Promise.all([api.status(this.job), api.timeline(this.job)]);
      if (this.#isClosed) return;
      this.timeline = timeline.states;
      const isAnother = status.attempt !== this.#attempt;
      this.#attempt = status.attempt;
      this.status = status;
      if (isAnother) await this.#loadFigures();
    } catch (error) {
      if (!this.#isClosed && error instanceof ApiError && error.status === 404) this.error = error;
    }
  }

  /** All figures anew: steps that are taken again replace those taken before. */
  async #loadFigures(): Promise<void> {
    const later: Arrived[] = [];
    this.#arriving = later;
    try {
      const metrics = await api.metrics(this.job, { max_points: POINTS });
      this.#isThinned = metrics.count < metrics.total;
      this.series.rewind(-1);
      this.#arriving = null;
      for (const row of metrics.metrics) this.#add(row as unknown as Row, Date.parse(row.timestamp));
      for (const { row, at } of later) this.#add(row, at);
      this.#changed();
    } finally {
      this.#arriving = null;
    }
  }

  #add(row: Row, at: number): void {
    this.series.add(row);
    this.#arriving?.push({ row, at });
    if (this.series.size > 2 * POINTS) {
      this.series.thin();
      this.#isThinned = true;
    }
    this.pace.see(row.step, at);
  }

  #changed(): void {
    if (this.#drawTimer) return;
    this.#drawTimer = window.setTimeout(() => {
      this.#drawTimer = 0;
      this.version += 1;
    }, DRAW_EVERY);
  }
}
