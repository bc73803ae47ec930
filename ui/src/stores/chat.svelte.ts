/** A conversation with a run's model and with its base, side by side. */

import { api, ApiError, asApiError, type Comparison } from '../api/client';
import { lines } from '../api/lines';
import type { components } from '../api/types';

export type Side = 'base' | 'tuned';
const SIDES = ['tuned', 'base'] as const;

export interface Answer {
  text: string;
  /** Why it ends where it does, where it wasn't at its own end. */
  note: string;
}
/** A question and what each side said to it. */
export interface Exchange {
  question: string;
  answers: Record<Side, Answer>;
}
export interface Sampling {
  max_new_tokens: number;
  temperature: number;
  seed: number;
}
type Line = components['schemas']['AnswerLine'];

const ENDS: Record<string, string> = {
  end_token: '',
  max_new_tokens: 'cut off at the longest answer that was asked for',
  max_positions: 'cut off, since the model can’t read on',
};

export class Chat {
  exchanges = $state<Exchange[]>([]);
  /** Who is being asked. */
  side = $state<Side | null>(null);
  state = $state.raw<components['schemas']['ChatState'] | null>(null);
  tally = $state.raw<components['schemas']['ComparisonList']['tally'] | null>(null);
  comparison = $state.raw<Comparison | null>(null);
  isBusy = $state(false);
  failure = $state<ApiError | null>(null);
  #stopping = new AbortController();

  constructor(readonly job: string) {
    void this.refresh().catch(() => {});
  }

  async refresh(): Promise<void> {
    const [state, comparisons] = await Promise.all([api.chatState(), api.comparisons(this.job)]);
    this.state = state;
    this.tally = comparisons.tally;
  }

  /** Both sides answer, the tuned one first; each goes on with its own answers so far. Whether anything was said. */
  async say(question: string, system: string, sampling: Sampling, force: boolean): Promise<boolean> {
    this.exchanges.push({ question, answers: { tuned: { text: '', note: '' }, base: { text: '', note: '' } } });
    const place = this.exchanges.length - 1;
    await this.#busy(async (signal) => {
      await this.#load(force, signal);
      for (const side of SIDES) {
        this.side = side;
        await this.#draw(place, side, this.#messages(side, place, system), sampling, signal);
      }
    });
    this.side = null;
    const exchange = this.exchanges[place];
    const isAnswered = SIDES.some((side) => exchange?.answers[side].text);
    if (!isAnswered) this.exchanges.splice(place, 1);
    else for (const side of SIDES) if (exchange && !exchange.answers[side].text) exchange.answers[side].note ||= 'not asked any more';
    return isAnswered;
  }

  async compare(content: string, system: string, sampling: Sampling, force: boolean): Promise<boolean> {
    const messages = [...(system ? [{ role: 'system', content: system }] : []), { role: 'user', content }];
    this.comparison = null;
    await this.#busy(async (signal) => {
      await this.#load(force, signal);
      this.comparison = await api.compareBlind({ job_id: this.job, messages, ...sampling }, signal);
    });
    return this.comparison !== null;
  }

  async vote(better: 'left' | 'right' | 'tie'): Promise<void> {
    const open = this.comparison;
    if (open) await this.#busy(async () => (this.comparison = await api.vote(open.comparison_id, better)));
  }

  async release(): Promise<void> {
    this.stop();
    this.state = await api.unloadChatModel();
  }

  stop(): void {
    this.#stopping.abort();
  }

  clear(): void {
    this.exchanges = [];
  }

  async #load(force: boolean, signal: AbortSignal): Promise<void> {
    this.state = await api.loadChatModel(this.job, force, signal);
  }

  /** What a side is asked: the conversation as it went with it, without questions that it never answered. */
  #messages(side: Side, place: number, system: string): { role: string; content: string }[] {
    const before = this.exchanges.slice(0, place).filter((exchange) => exchange.answers[side].text);
    return [
      ...(system ? [{ role: 'system', content: system }] : []),
      ...before.flatMap(({ question, answers }) => [{ role: 'user', content: question }, { role: 'assistant', content: answers[side].text }]),
      { role: 'user', content: this.exchanges[place]?.question ?? '' },
    ];
  }

  async #draw(place: number, side: Side, messages: unknown, sampling: Sampling, signal: AbortSignal): Promise<void> {
    const answer = (this.exchanges[place] as Exchange).answers[side];
    answer.note = 'stopped';
    for await (const line of lines<Line>('/chat/answer', { job_id: this.job, side, messages, ...sampling }, signal)) {
      if (line.type === 'text') answer.text += line.text;
      else if (line.type === 'error') throw new ApiError(500, line.error);
      else if (line.type === 'end') answer.note = ENDS[line.reason] ?? '';
    }
  }

  async #busy(act: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
    this.#stopping = new AbortController();
    this.isBusy = true;
    this.failure = null;
    try {
      await act(this.#stopping.signal);
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.failure = asApiError(error);
    } finally {
      this.isBusy = false;
      await this.refresh().catch(() => {});
    }
  }
}
