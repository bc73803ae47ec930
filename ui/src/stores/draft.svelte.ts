/** The configuration of a new run, validated by the server after each change. */

import { api, toApiError, UNREACHABLE, type Finding } from '../api/client';
import type { components } from '../api/types';
import { configOf, DEFAULT_DATA, draftFromConfig, missingIn, suggestName, type DataDraft, type Values } from '../lib/new-run/draft';
import { storedDrafts, storageKey } from '../lib/new-run/draft-storage';
import { defaultOf, withoutSecrets, type InvalidInput } from '../lib/new-run/fields';
import { capitalized } from '../lib/format';
import { describe, describeOfSource, errorsIn, settingOf, warningsIn } from '../lib/new-run/findings';

const VALIDATE_MS = 800;

/** Drafts stored before a reload of the tab, by storage key. */
const stored = storedDrafts(sessionStorage);
let current: Draft | null = null;

/** Return the draft that copies the run `from`, or the current one of a new run. */
export function openDraft(from: string | null): Draft {
  if (from !== null) return new Draft(from);
  current ??= new Draft(null);
  return current;
}

/** Discard the draft of `from` after it was submitted, or all drafts on logout. */
export function discardDrafts(from: string | null | undefined = undefined): void {
  if (from === undefined) stored.clear();
  else stored.delete(storageKey(from));
  for (const key of from === undefined ? storedDrafts(sessionStorage).keys() : [storageKey(from)]) sessionStorage.removeItem(key);
  if (from == null) current = null;
}

export class Draft {
  model = $state('');
  name = $state('');
  isNamed = $state(false);
  token = $state('');
  data = $state.raw<DataDraft>(DEFAULT_DATA);
  values = $state.raw<Values>({});
  results = $state.raw<components['schemas']['ValidationResults'] | null>(null);
  isChecking = $state(false);
  /** Invalid inputs by setting; `values` still has their previous values. */
  invalid = $state.raw<Record<string, InvalidInput>>({});
  /** Incremented when a configuration is loaded or settings are replaced, to recreate components with state of their own. */
  dataVersion = $state(0);
  settingsVersion = $state(0);
  #errors = $state.raw<Finding[]>([]);
  /** Whether it was stored before a reload of the tab. */
  readonly isRestored: boolean;

  constructor(private readonly from: string | null) {
    const before = stored.get(storageKey(from));
    stored.delete(storageKey(from));
    this.isRestored = before !== undefined;
    if (before === undefined) return;
    this.model = before.model;
    this.name = before.name;
    this.isNamed = before.isNamed;
    this.data = before.data;
    this.setAll(before.values);
    this.invalid = before.invalid;
  }

  /** The configuration without secrets, for display and storage. */
  config = $derived(configOf(this.model.trim(), this.outputName, this.data, withoutSecrets(this.values)));
  /** Errors and warnings that no field of the form shows. */
  generalErrors = $derived(this.#errors.filter((each) => settingOf(each) === null).map(describe));
  generalWarnings = $derived(this.#warnings.filter((each) => settingOf(each) === null || settingOf(each) === 'dataset').map(describeOfSource));

  get #warnings(): Finding[] {
    return warningsIn(this.results?.findings ?? []);
  }

  get outputName(): string {
    return this.isNamed ? this.name.trim() : suggestName(this.model.trim());
  }

  get isPristine(): boolean {
    return Object.keys(this.values).length === 0 && this.settingsVersion === 0;
  }

  /** What to enter before the draft can be submitted. */
  get missing(): string {
    if (!this.model.trim()) return 'Select a base model.';
    return missingIn(this.data) || 'Enter an output name.';
  }

  /** The configuration with secrets. */
  get fullConfig(): Values | null {
    return this.config && { ...this.config, ...this.values, ...(this.token ? { hf_token: this.token } : {}) };
  }

  findingsOf(field: string): Finding[] {
    return this.#errors.filter((each) => settingOf(each) === field);
  }

  errorsOf(field: string): string[] {
    return this.findingsOf(field).map((each) => capitalized(each.message));
  }

  warningsOf(field: string): string[] {
    return this.#warnings.filter((each) => settingOf(each) === field).map((each) => capitalized(each.message));
  }

  set(name: string, value: unknown): void {
    const { [name]: _before, ...others } = this.values;
    const isDefault = value === undefined || JSON.stringify(value) === JSON.stringify(defaultOf(name, others));
    this.values = isDefault ? others : { ...others, [name]: value };
    // The two quantizations are mutually exclusive.
    if (name === 'use_8bit' && value === true) this.set('use_4bit', false);
    if (name === 'use_4bit' && value === true) this.set('use_8bit', false);
  }

  setInvalid(name: string, input: InvalidInput | null): void {
    const { [name]: _before, ...others } = this.invalid;
    this.invalid = input ? { ...others, [name]: input } : others;
  }

  /** Replace all settings. */
  setAll(values: Values): void {
    this.values = { ...values };
    this.invalid = {};
    this.settingsVersion += 1;
  }

  load(config: Values): void {
    const parts = draftFromConfig(config);
    this.model = parts.model || this.model;
    if (parts.name) {
      this.name = parts.name;
      this.isNamed = true;
    }
    if (config.dataset) this.data = parts.data.sources[0]?.source ? parts.data : { ...parts.data, sources: this.data.sources, mapping: this.data.mapping };
    this.setAll(parts.values);
    this.dataVersion += 1;
  }

  /** Store the draft without secrets, to survive a reload. */
  store(): void {
    const { model, name, isNamed, data } = this;
    const invalid = withoutSecrets(this.invalid);
    if (this.isPristine && !model && !data.sources[0]?.source && Object.keys(invalid).length === 0) return;
    sessionStorage.setItem(storageKey(this.from), JSON.stringify({ model, name, isNamed, data, values: withoutSecrets(this.values), invalid }));
  }

  /** Validate the configuration after a pause in typing. Return the cleanup function for an effect. */
  scheduleValidation(): () => void {
    if (!this.isNamed) this.name = this.outputName;
    const config = this.fullConfig;
    if (config === null) {
      this.results = null;
      this.#errors = [];
      this.isChecking = false;
      return () => {};
    }
    const controller = new AbortController();
    const timer = setTimeout(() => void this.#validate(config, controller.signal), VALIDATE_MS);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }

  async #validate(config: Values, signal: AbortSignal): Promise<void> {
    this.isChecking = true;
    try {
      const response = await api.validate(config, signal);
      if (signal.aborted) return;
      this.results = response.results;
      this.#errors = errorsIn(response.results.findings ?? []);
    } catch (error) {
      if (signal.aborted) return;
      this.results = null;
      const failure = toApiError(error);
      // The page already shows that the server is unreachable.
      const errors = errorsIn(failure.findings);
      this.#errors = failure.status === UNREACHABLE || errors.length > 0 ? errors : [{ field: null, message: failure.message, severity: 'error' }];
    } finally {
      if (!signal.aborted) this.isChecking = false;
    }
  }
}
