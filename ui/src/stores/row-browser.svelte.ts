/** The rows of a data set, loaded a few at a time in both directions or by a search for findings. */

import { api, ApiError, toApiError, type Preview } from '../api/client';
import type { Values } from '../lib/new-run/draft';
import { formattedRows, storedRows, type PreviewedRow } from '../lib/new-run/previewed-rows';

/** What is previewed. `dataset` is as in a run, with the model that gives the tokens, if any. */
export interface PreviewRequest {
  dataset: Values;
  token: string | null;
  maxLength: number;
  maxPromptLength: number;
}

interface Batch {
  rows: PreviewedRow[];
  next: number | null;
  /** Why the rows are not formatted. */
  problem: string;
  preview: Preview;
}

/** As many rows as a response has. */
const BATCH = 5;
const MAX_ROWS_HELD = 100;
const NEEDS_MODEL = 'Select a base model to preview its chat template.';

export class RowBrowser {
  rows = $state.raw<PreviewedRow[]>([]);
  index = $state(0);
  /** Kind of findings that all rows have: '' for all rows, `findings` for any kind. */
  filter = $state('');
  /** The preview of the first rows, with the findings on them. */
  summary = $state.raw<Preview | null>(null);
  /** Number of rows that the data set has; null if it is unknown. */
  total = $state<number | null>(null);
  error = $state('');
  isLoading = $state(false);
  /** Whether the last search ended without a further row. */
  hasFoundNone = $state(false);
  /** The row from which to load the next ones; null at the end. */
  next = $state<number | null>(null);

  #request: PreviewRequest | null = null;
  #controller = new AbortController();
  /** Whether the last request failed. */
  #hasFailed = false;

  row = $derived(this.rows[this.index]);
  canGoBack = $derived(this.index > 0 || (this.filter === '' && (this.rows[0]?.row ?? 1) > 1));
  canGoOn = $derived(this.index < this.rows.length - 1 || this.next !== null);

  /** Load the rows for a changed form. The position is kept unless the source has changed. */
  async load(request: PreviewRequest): Promise<void> {
    const before = this.#request?.dataset.source;
    this.#request = request;
    if (JSON.stringify(before) !== JSON.stringify(request.dataset.source)) this.#reset();
    const position = Math.min(this.row?.row ?? 1, Number(request.dataset.max_samples ?? Infinity));
    const isStart = position === 1 && this.filter === '';
    const first = await this.#fetch(1, '');
    if (first === null) {
      if (this.#hasFailed) this.#clear();
      return;
    }
    this.summary = first.problem ? null : first.preview;
    if (isStart) this.#replace(first);
    else await this.#goTo(position);
  }

  async goTo(row: number): Promise<void> {
    const loaded = this.rows.findIndex((each) => each.row <= row && row <= each.lastRow);
    if (this.filter === '' && loaded >= 0) this.index = loaded;
    else await this.#goTo(row);
  }

  async setFilter(filter: string): Promise<void> {
    this.filter = filter;
    await this.#goTo(1);
  }

  async goOn(): Promise<void> {
    if (this.index < this.rows.length - 1) this.index += 1;
    else if (this.next !== null) {
      const batch = await this.#fetch(this.next, this.filter);
      if (batch === null) return;
      const held = this.rows.slice(-MAX_ROWS_HELD);
      this.rows = [...held, ...batch.rows];
      this.index = Math.max(0, held.length - (batch.rows.length > 0 ? 0 : 1));
      this.#end(batch);
    }
  }

  async goBack(): Promise<void> {
    if (this.index > 0) this.index -= 1;
    else if (this.canGoBack) await this.#goBackTo(this.rows[0]?.row ?? 1);
  }

  /** Cancel the request that is in progress. */
  cancel(): void {
    this.#controller.abort();
    this.isLoading = false;
  }

  #reset(): void {
    this.#clear();
    this.filter = '';
    this.total = null;
  }

  #clear(): void {
    this.rows = [];
    this.next = null;
    this.summary = null;
    this.hasFoundNone = false;
  }

  async #goTo(row: number): Promise<void> {
    const batch = await this.#fetch(row, this.filter);
    if (batch) this.#replace(batch);
  }

  /** Show the row before `row`, which is the first of those that are loaded. */
  async #goBackTo(row: number): Promise<void> {
    let batch = await this.#fetch(Math.max(1, row - BATCH), '');
    // Rows with several pairs may fill the response before that row.
    if (batch && !batch.rows.some((each) => each.lastRow === row - 1)) batch = await this.#fetch(row - 1, '');
    if (batch) this.#replace(batch, batch.rows.findLastIndex((each) => each.row < row));
  }

  #replace(batch: Batch, index = 0): void {
    this.rows = batch.rows;
    this.index = Math.max(0, index);
    this.#end(batch);
  }

  #end(batch: Batch): void {
    this.next = batch.next;
    this.hasFoundNone = batch.rows.length === 0;
  }

  /** Load rows; null if that failed or was superseded by another request. */
  async #fetch(row: number, only: string): Promise<Batch | null> {
    this.cancel();
    const { signal } = (this.#controller = new AbortController());
    this.isLoading = true;
    this.#hasFailed = false;
    try {
      const batch = await this.#batch(row, only, signal);
      if (signal.aborted) return null;
      this.error = batch.problem;
      this.total = batch.preview.total_rows ?? this.total;
      return batch;
    } catch (cause) {
      if (!signal.aborted) {
        this.error = toApiError(cause).fullMessage;
        this.#hasFailed = true;
      }
      return null;
    } finally {
      if (!signal.aborted) this.isLoading = false;
    }
  }

  /** Load formatted rows, or stored ones with the reason why they cannot be formatted. */
  async #batch(row: number, only: string, signal: AbortSignal): Promise<Batch> {
    const { dataset, token } = this.#request as PreviewRequest;
    try {
      const preview = await this.#formatted(row, only, signal);
      return { rows: formattedRows(preview), next: preview.next_row ?? null, problem: '', preview };
    } catch (cause) {
      if (signal.aborted) throw cause;
      const problem = toApiError(cause).fullMessage;
      const preview = await api.preview({ source: dataset.source, max_samples: dataset.max_samples ?? null }, token, row, signal).catch(() => Promise.reject(cause));
      return { rows: storedRows(preview, row), next: preview.next_row ?? null, problem, preview };
    }
  }

  #formatted(row: number, only: string, signal: AbortSignal): Promise<Preview> {
    const { dataset, token, maxLength, maxPromptLength } = this.#request as PreviewRequest;
    const needsModel = (dataset.format as Values).format_type === 'tokenizer' && !dataset.model_name;
    if (needsModel) return Promise.reject(new ApiError(400, NEEDS_MODEL));
    const query = { max_length: String(maxLength), max_prompt_length: String(maxPromptLength), row: String(row), ...(only ? { only } : {}) };
    return api.formatted(dataset, token, query, signal);
  }
}
