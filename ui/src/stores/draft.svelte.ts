/** The run that is being put together, checked by the server as it changes. */

import { api, asApiError } from '../api/client';
import type { components } from '../api/types';
import { configOf, EMPTY_DATA, partsOf, said, suggestedName, type DataDraft, type Said, type Values } from '../lib/draft';
import { keptDrafts, keyOf } from '../lib/kept-drafts';
import { FIELDS, initialOf, withoutSecrets, type Refused } from '../lib/fields';

const WAIT = 800;

/** Drafts that this tab held when it was reloaded, by the key they were kept under. */
const kept = keptDrafts(sessionStorage);
let inHand: Draft | null = null;

/** The draft of a new run, or of one that begins with the settings of the run `from`: as it was left, or an empty one. */
export function draftFor(from: string | null): Draft {
  if (from !== null) return new Draft(from);
  inHand ??= new Draft(null);
  return inHand;
}

/** To be called once the draft was sent, or when its author logs out. */
export function forgetDrafts(from: string | null | undefined = undefined): void {
  if (from === undefined) kept.clear();
  else kept.delete(keyOf(from));
  for (const key of from === undefined ? keptDrafts(sessionStorage).keys() : [keyOf(from)]) sessionStorage.removeItem(key);
  if (from == null) inHand = null;
}

export class Draft {
  model = $state('');
  name = $state('');
  isNamed = $state(false);
  token = $state('');
  data = $state.raw<DataDraft>(EMPTY_DATA);
  values = $state.raw<Values>({});
  results = $state.raw<components['schemas']['ValidationResults'] | null>(null);
  isChecking = $state(false);
  /** Of fields that hold what can't be taken, by name: the value before it still stands. */
  invalid = $state.raw<Record<string, Refused>>({});
  /** Counts configurations taken over, so that what has a state of its own begins anew; `takes` those of settings. */
  loads = $state(0);
  takes = $state(0);
  #errors = $state.raw<Said[]>([]);
  /** Whether it is as it was before the tab was reloaded. */
  readonly isRestored: boolean;

  constructor(private readonly from: string | null) {
    const before = kept.get(keyOf(from));
    kept.delete(keyOf(from));
    this.isRestored = before !== undefined;
    if (before === undefined) return;
    this.model = before.model;
    this.name = before.name;
    this.isNamed = before.isNamed;
    this.data = before.data;
    this.take(before.values);
    this.invalid = before.invalid;
  }

  /** Without tokens, so that it can be shown and saved. */
  config = $derived(configOf(this.model.trim(), this.outputName, this.data, withoutSecrets(this.values)));
  loose = $derived(this.#errors.flatMap((each) => (each.field === null ? [each.text] : [])));
  #warned = $derived(said(this.results?.warnings ?? [], FIELDS.keys()));
  /** Those that no field stands for, or the data as a whole. */
  warnings = $derived(this.#warned.flatMap((each) => (each.field === null || each.field === 'dataset' ? [each.text] : [])));

  get outputName(): string {
    return this.isNamed ? this.name.trim() : suggestedName(this.model.trim());
  }

  get isUntouched(): boolean {
    return Object.keys(this.values).length === 0 && this.takes === 0;
  }

  get missing(): string {
    if (!this.model.trim()) return 'Name a base model first.';
    return this.data.source === null ? 'Choose data first.' : 'Give the result a name.';
  }

  /** The configuration with its tokens. */
  get toSend(): Values | null {
    return this.config && { ...this.config, ...this.values, ...(this.token ? { hf_token: this.token } : {}) };
  }

  saidOf(field: string): string[] {
    return this.#errors.filter((each) => each.field === field).map((each) => each.text);
  }

  warningsOf(field: string): string[] {
    return this.#warned.filter((each) => each.field === field).map((each) => each.text);
  }

  set(name: string, value: unknown): void {
    const { [name]: _before, ...others } = this.values;
    const isDefault = value === undefined || JSON.stringify(value) === JSON.stringify(initialOf(name, others));
    this.values = isDefault ? others : { ...others, [name]: value };
    // Weights are held one way: whoever chooses one gives up the other.
    if (name === 'use_8bit' && value === true) this.set('use_4bit', false);
    if (name === 'use_4bit' && value === true) this.set('use_8bit', false);
  }

  refuse(name: string, refused: Refused | null): void {
    const { [name]: _before, ...others } = this.invalid;
    this.invalid = refused ? { ...others, [name]: refused } : others;
  }

  /** All settings at once. */
  take(values: Values): void {
    this.values = { ...values };
    this.invalid = {};
    this.takes += 1;
  }

  load(config: Values): void {
    const parts = partsOf(config);
    this.model = parts.model || this.model;
    if (parts.name) {
      this.name = parts.name;
      this.isNamed = true;
    }
    if (config.dataset) this.data = parts.data.source ? parts.data : { ...parts.data, source: this.data.source, mapping: this.data.mapping };
    this.take(parts.values);
    this.loads += 1;
  }

  /** Keeps the draft for a reload, without its tokens; for an effect, and for the page's end. */
  keep(): void {
    const { model, name, isNamed, data } = this;
    const invalid = withoutSecrets(this.invalid);
    if (this.isUntouched && !model && !data.source && Object.keys(invalid).length === 0) return;
    sessionStorage.setItem(keyOf(this.from), JSON.stringify({ model, name, isNamed, data, values: withoutSecrets(this.values), invalid }));
  }

  /** For an effect: has the present configuration checked once it rests. Returns what takes that back. */
  watch(): () => void {
    if (!this.isNamed) this.name = this.outputName;
    const config = this.toSend;
    if (config === null) {
      this.results = null;
      this.#errors = [];
      this.isChecking = false;
      return () => {};
    }
    const asking = new AbortController();
    const timer = setTimeout(() => void this.#check(config, asking.signal), WAIT);
    return () => {
      clearTimeout(timer);
      asking.abort();
    };
  }

  async #check(config: Values, signal: AbortSignal): Promise<void> {
    this.isChecking = true;
    try {
      const answer = await api.validate(config, signal);
      if (signal.aborted) return;
      this.results = answer.results;
      this.#errors = said(answer.results.errors, FIELDS.keys());
    } catch (error) {
      if (signal.aborted) return;
      this.results = null;
      const found = asApiError(error);
      // While the server can't be reached the page says so itself.
      const lines = found.status === 0 ? [] : found.errors.length > 0 ? found.errors : [found.message];
      this.#errors = said(lines, FIELDS.keys());
    } finally {
      if (!signal.aborted) this.isChecking = false;
    }
  }
}
