/** The state, metrics and log of one run, updated over its WebSocket. */

import { api, ApiError, toApiError, type JobStatus, type LogLine, type TimelineEntry } from '../api/client';
import { LiveConnection, type Connection, type Message } from '../api/live';
import type { components } from '../api/types';
import { StepRate } from '../lib/charts/step-rate';
import { Series, type Row } from '../lib/charts/series';
import { isEnded } from '../lib/states';
import { attemptStart } from '../lib/timeline';
import { page } from './page.svelte';

/** More points than a chart has pixels: the server downsamples to this number, and the page when a run has grown beyond MAX_POINTS. */
const POINTS = 1500;
const MAX_POINTS = 3 * POINTS;
const REDRAW_MS = 100;
const RETRY_MS = 2000;

export interface Range {
  from: number;
  to: number;
}

interface TimedRow {
  row: Row;
  /** Milliseconds since the epoch. */
  at: number;
}

/** One job, which the page calls a run: its record, log, configuration and metrics, updated by the WebSocket. */
export class Run {
  status = $state.raw<JobStatus | null>(null);
  /** Output name. Kept apart from `status` because it never changes, so that its dependents are not recomputed with each status. */
  name = $state('');
  logs = $state.raw<LogLine[]>([]);
  timeline = $state.raw<TimelineEntry[]>([]);
  config = $state.raw<Record<string, unknown> | null>(null);
  connection = $state<Connection>('connecting');
  error = $state<ApiError | null>(null);
  /** Incremented after changes of `series`, at most ten times per second. */
  version = $state(0);
  readonly series = new Series();
  rate = new StepRate();
  #live: LiveConnection | null = null;
  /** Rows received while the metrics are being loaded; null otherwise. */
  #pendingRows: TimedRow[] | null = null;
  #redrawTimer = 0;
  #retryTimer = 0;
  #attempt = 1;
  #isDownsampled = false;
  #range: Range | null = null;
  /** Number of the latest load; responses to earlier loads are discarded. */
  #loadNumber = 0;

  constructor(readonly job: string) {
    void this.load();
  }

  /** Return a metric of the saved model, or its newest value until the model is saved. */
  metric(name: string): number | null {
    const final = this.status?.final_metrics;
    return final?.kept_step != null ? (final[`final_${name}`] ?? null) : this.series.last(name);
  }

  close(): void {
    this.#loadNumber += 1;
    this.#live?.close();
    clearTimeout(this.#redrawTimer);
    clearTimeout(this.#retryTimer);
  }

  /** Load the rows of a range at a higher resolution if the run is downsampled; null selects the whole run. */
  async loadRange(range: Range | null): Promise<void> {
    this.#range = range;
    if (!range || !this.#isDownsampled) return;
    const load = this.#loadNumber;
    const part = { since_step: Math.max(0, Math.floor(range.from)), until_step: Math.max(0, Math.ceil(range.to)) };
    const response = await api.metrics(this.job, { ...part, max_points: POINTS }).catch(() => null);
    if (load !== this.#loadNumber || range !== this.#range || !response) return;
    for (const row of response.metrics) this.series.add(row as unknown as Row);
    this.#scheduleRedraw();
  }

  /** Load everything, and again after an action on the job. */
  async load(): Promise<void> {
    const load = ++this.#loadNumber;
    this.#live?.close();
    this.#live = null;
    clearTimeout(this.#retryTimer);
    try {
      const status = await api.status(this.job);
      const [logs, config, timeline] = await Promise.all([api.logs(this.job), api.config(this.job), api.timeline(this.job)]);
      if (load !== this.#loadNumber) return;
      this.#setStatus(status, timeline.states);
      this.logs = logs.logs;
      this.config = config as unknown as Record<string, unknown>;
      await this.#loadMetrics();
      if (load !== this.#loadNumber) return;
      this.error = null;
      if (isEnded(status.status)) this.connection = 'ended';
      else this.#live = new LiveConnection(this.job, status.seq, this.#onMessage, this.#onConnection);
    } catch (error) {
      if (load !== this.#loadNumber) return;
      this.error = toApiError(error);
      if (this.error.isTransient) this.#retryTimer = window.setTimeout(() => void this.load(), RETRY_MS);
    }
  }

  #setStatus(status: JobStatus, timeline: TimelineEntry[]): void {
    if (status.attempt !== this.#attempt) this.rate = new StepRate();
    this.status = status;
    this.name = status.output_name;
    this.timeline = timeline;
    this.#attempt = status.attempt;
  }

  #onConnection = (connection: Connection): void => {
    this.connection = connection;
    if (connection === 'lost' || !page.isReachable) void page.checkSession();
    if (connection === 'ended') void this.#refreshStatus();
  };

  #onMessage = (message: Message): void => {
    if (message.type === 'metrics') {
      const { step, metrics } = message;
      // A resumed run repeats the steps after its checkpoint.
      if (!this.#pendingRows && step < this.series.lastStep) this.series.truncateAfter(step);
      this.#add({ step, ...metrics }, message.timestamp * 1000);
      this.#scheduleRedraw();
    } else if (message.type === 'log') {
      this.#addLogLine(message);
    } else if (message.type === 'request' && this.status) {
      this.status = { ...this.status, stop_requested: message.stop_requested, pause_requested: message.pause_requested };
    } else if (message.type === 'status_update' && this.status) {
      const isNewState = message.status !== this.status.status;
      const { type: _type, timestamp: _timestamp, job_id: _job, ...changes } = message;
      this.status = { ...this.status, ...changes };
      if (isNewState) void this.#refreshStatus();
    }
  };

  #addLogLine({ seq, timestamp, level, message }: components['schemas']['LogMessage']): void {
    if (this.logs.some((line) => line.seq === seq)) return;
    this.logs = [...this.logs, { seq, timestamp: new Date(timestamp * 1000).toISOString(), level, message }];
  }

  /** Load what messages do not contain: times, attempt, error and output folder. */
  async #refreshStatus(): Promise<void> {
    const load = this.#loadNumber;
    try {
      const [status, timeline] = await Promise.all([api.status(this.job), api.timeline(this.job)]);
      if (load !== this.#loadNumber) return;
      const isNewAttempt = status.attempt !== this.#attempt;
      this.#setStatus(status, timeline.states);
      if (isNewAttempt) await this.#loadMetrics();
    } catch (error) {
      if (load === this.#loadNumber && error instanceof ApiError && error.status === 404) this.error = error;
    }
  }

  /** Load all metrics again, because repeated steps replace earlier ones. */
  async #loadMetrics(): Promise<void> {
    const load = this.#loadNumber;
    const pending: TimedRow[] = [];
    this.#pendingRows = pending;
    try {
      const metrics = await api.metrics(this.job, { max_points: POINTS });
      if (load !== this.#loadNumber) return;
      this.#isDownsampled = metrics.count < metrics.total;
      this.#pendingRows = null;
      this.series.truncateAfter(-1);
      for (const row of metrics.metrics) this.#add(row as unknown as Row, Date.parse(row.timestamp));
      for (const { row, at } of pending) this.#add(row, at);
      this.#scheduleRedraw();
    } finally {
      if (this.#pendingRows === pending) this.#pendingRows = null;
    }
    await this.loadRange(this.#range);
  }

  #add(row: Row, at: number): void {
    this.series.add(row);
    this.#pendingRows?.push({ row, at });
    if (at >= attemptStart(this.timeline)) this.rate.record(row.step, at);
    if (this.series.size < MAX_POINTS) return;
    this.series.downsample(POINTS);
    this.#isDownsampled = true;
    void this.loadRange(this.#range);
  }

  #scheduleRedraw(): void {
    if (this.#redrawTimer) return;
    this.#redrawTimer = window.setTimeout(() => {
      this.#redrawTimer = 0;
      this.version += 1;
    }, REDRAW_MS);
  }
}
