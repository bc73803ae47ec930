/** The client of the HTTP API: one function per endpoint, one error class. */

import { describe, errorsIn } from '../lib/new-run/findings';
import { urlFor } from '../lib/url';
import type { components } from './types';

type Schemas = components['schemas'];
export type JobStatus = Schemas['JobStatus'];
export type JobState = JobStatus['status'];
export type HistoryEntry = Schemas['JobHistoryEntry'];
export type MetricRow = Schemas['MetricRow'];
export type TimelineEntry = Schemas['TimelineEntry'];
export type LogLine = Schemas['LogLine'];
export type QueueStatus = Schemas['QueueStatus'];
export type JobCreated = Schemas['JobCreated'];
export type TrainingConfig = Schemas['TrainingConfig'];
export type Gpu = Schemas['GpuInfo'];
export type Comparison = Schemas['Comparison'];
export type Upload = Schemas['UploadEntry'];
export type Finding = Schemas['Finding'];
export type Preview = Schemas['PreviewResponse'];
export type LengthHistogram = Schemas['LengthHistogram'];

/** Values of `status` for requests without a response. */
export const UNREACHABLE = 0;
/** The request was cancelled or failed in the browser. */
const FAILED_LOCALLY = 1;

/** A failed request. `status` is the HTTP status, `UNREACHABLE` or `FAILED_LOCALLY`. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly findings: Finding[] = [],
    /** Whether the same request with `force` succeeds. */
    readonly canForce = false,
  ) {
    super(message);
  }

  /** Whether a retry of the same request may succeed. */
  get isTransient(): boolean {
    return this.status === UNREACHABLE || this.status >= 500;
  }

  /** The message followed by all errors. */
  get fullMessage(): string {
    const errors = errorsIn(this.findings).map(describe);
    return errors.length > 0 ? `${this.message.replace(/[.:]$/, '')}: ${errors.join('; ')}` : this.message;
  }
}

export function toApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError(FAILED_LOCALLY, error instanceof Error ? error.message : String(error));
}

interface Listener {
  /** The server requires a login. */
  onLoginRequired: () => void;
  /** A request did or did not reach the server. */
  onReachable: (isReachable: boolean) => void;
}
let listener: Listener = { onLoginRequired: () => {}, onReachable: () => {} };

export function listen(to: Listener): void {
  listener = to;
}

/** Send a request. Throws ApiError unless the response is successful. */
export async function request(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit = { method, signal };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { 'Content-Type': 'application/json' };
  }
  const response = await fetch(urlFor(path), init).catch(() => null);
  if (response?.ok) listener.onReachable(true);
  else if (!signal?.aborted) throw errorFromResponse(path, response?.status ?? UNREACHABLE, await response?.json().catch(() => null));
  if (!response) throw new ApiError(FAILED_LOCALLY, 'The request was cancelled.');
  return response;
}

async function requestJson<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  return (await (await request(method, path, body, signal)).json()) as T;
}

/** `body` is null if the response is not JSON, for example from a proxy that did not reach the server. */
function errorFromResponse(path: string, status: number, body: unknown): ApiError {
  const isReachable = status !== UNREACHABLE && (status < 502 || body !== null);
  listener.onReachable(isReachable);
  if (!isReachable) return new ApiError(UNREACHABLE, 'The server is unreachable.');
  if (status === 401 && path !== '/login') listener.onLoginRequired();
  const detail = (body as { detail?: unknown } | null)?.detail;
  if (typeof detail === 'string') return new ApiError(status, detail);
  if (detail && typeof detail === 'object') {
    const { message, findings, can_force } = detail as Schemas['ErrorDetails'];
    return new ApiError(status, message, findings ?? [], can_force);
  }
  return new ApiError(status, `The server returned status ${status} without an explanation.`);
}

const id = encodeURIComponent;

/** Upload a file and report the fraction that was sent, which `fetch` does not support. */
function upload<T>(path: string, file: File, onprogress: (fraction: number) => void): Promise<T> {
  const form = new FormData();
  form.append('file', file);
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => onprogress(event.loaded / Math.max(1, event.total));
    request.onerror = () => reject(new ApiError(UNREACHABLE, 'The upload was interrupted: the server is unreachable or rejected the file.'));
    request.onload = () => (request.status < 300 ? resolve(request.response as T) : reject(errorFromResponse(path, request.status, request.response)));
    request.responseType = 'json';
    request.open('POST', urlFor(path));
    request.send(form);
  });
}

export const api = {
  session: () => requestJson<Schemas['SessionState']>('GET', '/session'),
  login: (api_key: string) => requestJson<Schemas['SessionState']>('POST', '/login', { api_key }),
  logout: () => requestJson<Schemas['SessionState']>('POST', '/logout'),
  info: () => requestJson<Schemas['ApiInfo']>('GET', '/api'),
  health: () => requestJson<Schemas['Health']>('GET', '/health'),
  stats: () => requestJson<Schemas['Stats']>('GET', '/stats'),
  history: (limit = 200, offset = 0) => requestJson<Schemas['JobHistory']>('GET', `/jobs/history?limit=${limit}&offset=${offset}`),
  queue: () => requestJson<QueueStatus>('GET', '/queue/status'),
  status: (job: string) => requestJson<JobStatus>('GET', `/status/${id(job)}`),
  metrics: (job: string, query: Record<string, number> = {}) =>
    requestJson<Schemas['JobMetrics']>('GET', `/jobs/${id(job)}/metrics?${new URLSearchParams(Object.entries(query).map(([k, v]) => [k, String(v)]))}`),
  logs: (job: string) => requestJson<Schemas['JobLogs']>('GET', `/jobs/${id(job)}/logs?limit=10000`),
  loadingCode: (job: string) => requestJson<Schemas['LoadingCode']>('GET', `/jobs/${id(job)}/loading-code`),
  timeline: (job: string) => requestJson<Schemas['JobTimeline']>('GET', `/jobs/${id(job)}/timeline`),
  config: (job: string) => requestJson<TrainingConfig>('GET', `/jobs/${id(job)}/config`),
  stop: (job: string) => requestJson<Schemas['StopResponse']>('POST', `/jobs/${id(job)}/stop`),
  pause: (job: string) => requestJson<Schemas['JobAction']>('POST', `/jobs/${id(job)}/pause`),
  resume: (job: string) => requestJson<JobCreated>('POST', `/jobs/${id(job)}/resume`),
  delete: (job: string) => requestJson<Schemas['JobAction']>('DELETE', `/jobs/${id(job)}`),
  machine: () => requestJson<Schemas['Machine']>('GET', '/system'),
  validate: (config: unknown, signal: AbortSignal) => requestJson<Schemas['ValidationResponse']>('POST', '/validate', config, signal),
  train: (config: unknown, query: Record<string, string>) => requestJson<JobCreated>('POST', `/train?${new URLSearchParams(query)}`, config),
  upload: (file: File, onprogress: (fraction: number) => void) => upload<Schemas['UploadResponse']>('/dataset/upload-file', file, onprogress),
  samplePairs: async () => new File([await (await request('GET', '/assets/sample_pairs.jsonl')).blob()], 'sample_pairs.jsonl'),
  uploads: () => requestJson<Schemas['UploadList']>('GET', '/dataset/uploads'),
  columns: (dataset: { source: unknown; column_mapping?: unknown }, hf_token: string | null, signal: AbortSignal) =>
    requestJson<Schemas['ColumnsResponse']>('POST', '/dataset/columns', { ...dataset, hf_token }, signal),
  preview: (dataset: Record<string, unknown>, hf_token: string | null, row: number, signal: AbortSignal) =>
    requestJson<Preview>('POST', `/dataset/preview?row=${row}`, { ...dataset, hf_token }, signal),
  formatted: (dataset: Record<string, unknown>, hf_token: string | null, query: Record<string, string>, signal: AbortSignal) =>
    requestJson<Preview>('POST', `/dataset/preview-formatted?${new URLSearchParams(query)}`, { ...dataset, hf_token }, signal),
  preload: (model_name: string, hf_token: string | null, signal: AbortSignal) => requestJson<Schemas['PreloadResponse']>('POST', '/model/preload', { model_name, hf_token }, signal),
  cachedModels: () => requestJson<Schemas['CachedModels']>('GET', '/model/cached'),
  savedConfigs: () => requestJson<Schemas['ConfigList']>('GET', '/configs/list'),
  savedConfig: (name: string) => requestJson<Schemas['ConfigResponse']>('GET', `/configs/${id(name)}`),
  saveConfig: (name: string, config: unknown) => requestJson<Schemas['ConfigWritten']>('POST', '/configs/save', { name, config }),
  removeConfig: (name: string) => requestJson<Schemas['ConfigDeleted']>('DELETE', `/configs/${id(name)}`),
  chatState: () => requestJson<Schemas['ChatState']>('GET', '/chat'),
  loadChatModel: (job_id: string, force: boolean, signal: AbortSignal) => requestJson<Schemas['ChatState']>('POST', '/chat/load', { job_id, force, with_base: true }, signal),
  unloadChatModel: () => requestJson<Schemas['ChatState']>('DELETE', '/chat'),
  compareBlind: (request: unknown, signal: AbortSignal) => requestJson<Comparison>('POST', '/chat/comparisons', request, signal),
  vote: (comparison: string, better: string) => requestJson<Comparison>('POST', `/chat/comparisons/${id(comparison)}/vote`, { better }),
  comparisons: (job: string) => requestJson<Schemas['ComparisonList']>('GET', `/chat/comparisons?job_id=${id(job)}&limit=1`),
  saveVotesAsDataset: (job: string) => requestJson<Schemas['UploadResponse']>('POST', `/chat/comparisons/dataset?job_id=${id(job)}`),
  gpus: () => requestJson<Schemas['GpuList']>('GET', '/gpu/list'),
};
