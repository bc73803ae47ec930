/** The public API: one function a question, errors as one kind. */

import { addressOf } from '../lib/address';
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

/** What the server, or the way to it, has against a request. `status` 0: it can't be reached. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly errors: string[] = [],
    /** Whether it is only for want of memory, and may be insisted on. */
    readonly canForce = false,
  ) {
    super(message);
  }

  /** Whether the same question may be answered in a moment. */
  get isPassing(): boolean {
    return this.status === 0 || this.status >= 500;
  }

  /** With its reasons. */
  get whole(): string {
    return [this.message, ...this.errors].join(' ');
  }
}

export function asApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError(1, error instanceof Error ? error.message : String(error));
}

interface Listener {
  /** The server wants an API key that this browser hasn't given. */
  onLoginRequired: () => void;
  /** A question could be asked, or not. */
  onReached: (isReachable: boolean) => void;
}
let listener: Listener = { onLoginRequired: () => {}, onReached: () => {} };

export function listen(to: Listener): void {
  listener = to;
}

/** Throws ApiError unless the answer is a good one. */
export async function request(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit = { method, signal };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { 'Content-Type': 'application/json' };
  }
  const response = await fetch(addressOf(path), init).catch(() => null);
  if (response?.ok) listener.onReached(true);
  else if (!signal?.aborted) throw refusal(path, response?.status ?? 0, await response?.json().catch(() => null));
  if (!response) throw new ApiError(1, 'It was taken back.');
  return response;
}

export async function ask<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  return (await (await request(method, path, body, signal)).json()) as T;
}

/** `answer` is null where it was no JSON, as from a proxy that found no server. */
function refusal(path: string, status: number, answer: unknown): ApiError {
  const isReachable = status !== 0 && (status < 502 || answer !== null);
  listener.onReached(isReachable);
  if (!isReachable) return new ApiError(0, 'The server can’t be reached.');
  if (status === 401 && path !== '/login') listener.onLoginRequired();
  const detail = (answer as { detail?: unknown } | null)?.detail;
  if (typeof detail === 'string') return new ApiError(status, detail);
  if (detail && typeof detail === 'object') {
    const { message, errors, can_force } = detail as Schemas['ErrorDetails'];
    return new ApiError(status, message, errors ?? [], can_force);
  }
  return new ApiError(status, `The server answered with ${status} and no reason.`);
}

const id = encodeURIComponent;

/** Uploads a file. `fetch` doesn't tell how much of it has left; `onsent` is told the share. */
function send<T>(path: string, file: File, onsent: (share: number) => void): Promise<T> {
  const form = new FormData();
  form.append('file', file);
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => onsent(event.loaded / Math.max(1, event.total));
    request.onerror = () => reject(new ApiError(0, 'The upload broke off: the server can’t be reached, or refused the file.'));
    request.onload = () => (request.status < 300 ? resolve(request.response as T) : reject(refusal(path, request.status, request.response)));
    request.responseType = 'json';
    request.open('POST', addressOf(path));
    request.send(form);
  });
}

export const api = {
  session: () => ask<Schemas['SessionState']>('GET', '/session'),
  login: (api_key: string) => ask<Schemas['SessionState']>('POST', '/login', { api_key }),
  logout: () => ask<Schemas['SessionState']>('POST', '/logout'),
  info: () => ask<Schemas['ApiInfo']>('GET', '/api'),
  health: () => ask<Schemas['Health']>('GET', '/health'),
  stats: () => ask<Schemas['Stats']>('GET', '/stats'),
  history: (limit = 200, offset = 0) => ask<Schemas['JobHistory']>('GET', `/jobs/history?limit=${limit}&offset=${offset}`),
  queue: () => ask<QueueStatus>('GET', '/queue/status'),
  status: (job: string) => ask<JobStatus>('GET', `/status/${id(job)}`),
  metrics: (job: string, query: Record<string, number> = {}) =>
    ask<Schemas['JobMetrics']>('GET', `/jobs/${id(job)}/metrics?${new URLSearchParams(Object.entries(query).map(([k, v]) => [k, String(v)]))}`),
  logs: (job: string) => ask<Schemas['JobLogs']>('GET', `/jobs/${id(job)}/logs?limit=10000`),
  loadingCode: (job: string) => ask<Schemas['LoadingCode']>('GET', `/jobs/${id(job)}/loading-code`),
  timeline: (job: string) => ask<Schemas['JobTimeline']>('GET', `/jobs/${id(job)}/timeline`),
  config: (job: string) => ask<TrainingConfig>('GET', `/jobs/${id(job)}/config`),
  stop: (job: string) => ask<Schemas['StopResponse']>('POST', `/jobs/${id(job)}/stop`),
  pause: (job: string) => ask<Schemas['JobAction']>('POST', `/jobs/${id(job)}/pause`),
  resume: (job: string) => ask<JobCreated>('POST', `/jobs/${id(job)}/resume`),
  remove: (job: string) => ask<Schemas['JobAction']>('DELETE', `/jobs/${id(job)}`),
  machine: () => ask<Schemas['Machine']>('GET', '/system'),
  validate: (config: unknown, signal: AbortSignal) => ask<Schemas['ValidationResponse']>('POST', '/validate', config, signal),
  train: (config: unknown, query: Record<string, string>) => ask<JobCreated>('POST', `/train?${new URLSearchParams(query)}`, config),
  upload: (file: File, onsent: (share: number) => void) => send<Schemas['UploadResponse']>('/dataset/upload-file', file, onsent),
  samplePairs: async () => new File([await (await request('GET', '/assets/sample_pairs.jsonl')).blob()], 'sample_pairs.jsonl'),
  uploads: () => ask<Schemas['UploadList']>('GET', '/dataset/uploads'),
  columns: (source: unknown, hf_token: string | null, signal: AbortSignal) => ask<Schemas['ColumnsResponse']>('POST', '/dataset/columns', { source, hf_token }, signal),
  formatted: (dataset: Record<string, unknown> | null, hf_token: string | null, maxLength: number, maxPromptLength: number, signal: AbortSignal) =>
    ask<Schemas['PreviewResponse']>('POST', `/dataset/preview-formatted?max_length=${maxLength}&max_prompt_length=${maxPromptLength}`, { ...dataset, hf_token }, signal),
  preload: (model_name: string, hf_token: string | null, signal: AbortSignal) => ask<Schemas['PreloadResponse']>('POST', '/model/preload', { model_name, hf_token }, signal),
  cachedModels: () => ask<Schemas['CachedModels']>('GET', '/model/cached'),
  savedConfigs: () => ask<Schemas['ConfigList']>('GET', '/configs/list'),
  savedConfig: (name: string) => ask<Schemas['ConfigResponse']>('GET', `/configs/${id(name)}`),
  saveConfig: (name: string, config: unknown) => ask<Schemas['ConfigWritten']>('POST', '/configs/save', { name, config }),
  removeConfig: (name: string) => ask<Schemas['ConfigDeleted']>('DELETE', `/configs/${id(name)}`),
  chatState: () => ask<Schemas['ChatState']>('GET', '/chat'),
  loadChatModel: (job_id: string, force: boolean, signal: AbortSignal) => ask<Schemas['ChatState']>('POST', '/chat/load', { job_id, force, with_base: true }, signal),
  unloadChatModel: () => ask<Schemas['ChatState']>('DELETE', '/chat'),
  compareBlind: (request: unknown, signal: AbortSignal) => ask<Comparison>('POST', '/chat/comparisons', request, signal),
  vote: (comparison: string, better: string) => ask<Comparison>('POST', `/chat/comparisons/${id(comparison)}/vote`, { better }),
  comparisons: (job: string) => ask<Schemas['ComparisonList']>('GET', `/chat/comparisons?job_id=${id(job)}&limit=1`),
  votesAsData: (job: string) => ask<Schemas['UploadResponse']>('POST', `/chat/comparisons/dataset?job_id=${id(job)}`),
  gpus: () => ask<Schemas['GpuList']>('GET', '/gpu/list'),
};
