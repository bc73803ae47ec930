/** A conversation with a run's model and with its base, side by side. */

import { api, ApiError, type Comparison } from '../api/client';
import { lines } from '../api/lines';
import type { components } from '../api/types';

export type Side = 'base' | 'tuned';
export interface Turn {
  role: 'user' | 'assistant';
  content: string;
}
export interface Sampling {
  max_new_tokens: number;
  temperature: number;
  seed: number;
}
type Line = { type: 'begin' } | { type: 'text'; text: string } | { type: 'end' } | { type: 'error'; error?: string; message?: string };

export class Talk {
  turns = $state<Record<Side, Turn[]>>({ base: [], tuned: [] });
  state = $state.raw<components['schemas']['TalkState'] | null>(null);
  tally = $state.raw<components['schemas']['ComparisonList']['tally'] | null>(null);
  comparison = $state.raw<Comparison | null>(null);
  isBusy = $state(false);
  failure = $state<ApiError | null>(null);
  #stopping = new AbortController();

  constructor(readonly job: string) {
    void this.refresh().catch(() => {});
  }

  async refresh(): Promise<void> {
    const [state, comparisons] = await Promise.all([api.talk(), api.comparisons(this.job)]);
    this.state = state;
    this.tally = comparisons.tally;
  }

  /** Both sides answer, the tuned one first; each goes on with its own answers so far. */
  async say(content: string, system: string, sampling: Sampling): Promise<void> {
    await this.#busy(async (signal) => {
      for (const side of ['tuned', 'base'] as const) this.turns[side].push({ role: 'user', content });
      for (const side of ['tuned', 'base'] as const) {
        const asked = [...(system ? [{ role: 'system', content: system }] : []), ...$state.snapshot(this.turns[side])];
        this.turns[side].push({ role: 'assistant', content: '' });
        await this.#draw(side, asked, sampling, signal);
      }
    });
  }

  async compare(content: string, system: string, sampling: Sampling): Promise<void> {
    const messages = [...(system ? [{ role: 'system', content: system }] : []), { role: 'user', content }];
    await this.#busy(async (signal) => {
      this.comparison = null;
      this.comparison = await api.compareBlind({ job_id: this.job, messages, ...sampling }, signal);
    });
  }

  async vote(better: 'left' | 'right' | 'tie'): Promise<void> {
    const open = this.comparison;
    if (open) await this.#busy(async () => (this.comparison = await api.vote(open.comparison_id, better)));
  }

  async load(force: boolean): Promise<void> {
    await this.#busy(async () => (this.state = await api.loadTalk(this.job, force)));
  }

  async release(): Promise<void> {
    this.stop();
    this.state = await api.releaseTalk();
  }

  stop(): void {
    this.#stopping.abort();
  }

  clear(): void {
    this.turns = { base: [], tuned: [] };
    this.comparison = null;
  }

  async #draw(side: Side, messages: unknown, sampling: Sampling, signal: AbortSignal): Promise<void> {
    const answer = this.turns[side].at(-1) as Turn;
    for await (const line of lines<Line>('/talk/answer', { job_id: this.job, side, messages, ...sampling }, signal)) {
      if (line.type === 'text') answer.content += line.text;
      else if (line.type === 'error') throw new ApiError(500, line.error ?? line.message ?? 'The answer broke off.');
    }
  }

  async #busy(act: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
    this.#stopping = new AbortController();
    this.isBusy = true;
    this.failure = null;
    try {
      await act(this.#stopping.signal);
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.failure = error instanceof ApiError ? error : new ApiError(0, String(error));
      this.#dropUnanswered();
    } finally {
      this.isBusy = false;
      await this.refresh().catch(() => {});
    }
  }

  /** Takes back questions that got no answer, so that roles go on taking turns. */
  #dropUnanswered(): void {
    for (const turns of Object.values(this.turns)) {
      if (turns.at(-1)?.role === 'assistant' && !turns.at(-1)?.content) turns.pop();
      if (turns.at(-1)?.role === 'user') turns.pop();
    }
  }
}
