/** A conversation with a run's model and its base model, side by side. */

import { api, ApiError, toApiError, type Comparison } from '../api/client';
import { jsonLines } from '../api/json-lines';
import type { components } from '../api/types';

export type Side = 'base' | 'tuned';
const SIDES = ['tuned', 'base'] as const;

export interface Answer {
  text: string;
  /** Why the answer ends before its end token; '' otherwise. */
  note: string;
}
/** A question with the answer of each model. */
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

const END_NOTES: Record<string, string> = {
  end_token: '',
  max_new_tokens: 'truncated at the maximum number of tokens',
  max_positions: 'truncated at the context length of the model',
};

export class Chat {
  exchanges = $state<Exchange[]>([]);
  /** The model that is generating. */
  activeSide = $state<Side | null>(null);
  state = $state.raw<components['schemas']['ChatState'] | null>(null);
  tally = $state.raw<components['schemas']['ComparisonList']['tally'] | null>(null);
  comparison = $state.raw<Comparison | null>(null);
  isBusy = $state(false);
  error = $state<ApiError | null>(null);
  #controller = new AbortController();

  constructor(readonly job: string) {
    void this.refresh().catch(() => {});
  }

  async refresh(): Promise<void> {
    const [state, comparisons] = await Promise.all([api.chatState(), api.comparisons(this.job)]);
    this.state = state;
    this.tally = comparisons.tally;
  }

  /** Ask both models, the fine-tuned one first; each continues its own conversation. Return whether either answered. */
  async ask(question: string, system: string, sampling: Sampling, force: boolean): Promise<boolean> {
    this.exchanges.push({ question, answers: { tuned: { text: '', note: '' }, base: { text: '', note: '' } } });
    const index = this.exchanges.length - 1;
    await this.#run(async (signal) => {
      await this.#load(force, signal);
      for (const side of SIDES) {
        this.activeSide = side;
        await this.#generate(index, side, this.#messages(side, index, system), sampling, signal);
      }
    });
    this.activeSide = null;
    const exchange = this.exchanges[index];
    const hasAnswer = SIDES.some((side) => exchange?.answers[side].text);
    if (!hasAnswer) this.exchanges.splice(index, 1);
    else for (const side of SIDES) if (exchange && !exchange.answers[side].text) exchange.answers[side].note ||= 'not generated';
    return hasAnswer;
  }

  async compare(content: string, system: string, sampling: Sampling, force: boolean): Promise<boolean> {
    const messages = [...(system ? [{ role: 'system', content: system }] : []), { role: 'user', content }];
    this.comparison = null;
    await this.#run(async (signal) => {
      await this.#load(force, signal);
      this.comparison = await api.compareBlind({ job_id: this.job, messages, ...sampling }, signal);
    });
    return this.comparison !== null;
  }

  async vote(better: 'left' | 'right' | 'tie'): Promise<void> {
    const open = this.comparison;
    if (open) await this.#run(async () => (this.comparison = await api.vote(open.comparison_id, better)));
  }

  async unload(): Promise<void> {
    this.stop();
    this.state = await api.unloadChatModel();
  }

  stop(): void {
    this.#controller.abort();
  }

  clear(): void {
    this.exchanges = [];
  }

  async #load(force: boolean, signal: AbortSignal): Promise<void> {
    this.state = await api.loadChatModel(this.job, force, signal);
  }

  /** Return the conversation of one model up to an exchange, without questions that it did not answer. */
  #messages(side: Side, index: number, system: string): { role: string; content: string }[] {
    const earlier = this.exchanges.slice(0, index).filter((exchange) => exchange.answers[side].text);
    return [
      ...(system ? [{ role: 'system', content: system }] : []),
      ...earlier.flatMap(({ question, answers }) => [{ role: 'user', content: question }, { role: 'assistant', content: answers[side].text }]),
      { role: 'user', content: this.exchanges[index]?.question ?? '' },
    ];
  }

  async #generate(index: number, side: Side, messages: unknown, sampling: Sampling, signal: AbortSignal): Promise<void> {
    const answer = (this.exchanges[index] as Exchange).answers[side];
    answer.note = 'stopped';
    for await (const line of jsonLines<Line>('/chat/answer', { job_id: this.job, side, messages, ...sampling }, signal)) {
      if (line.type === 'text') answer.text += line.text;
      else if (line.type === 'error') throw new ApiError(500, line.error);
      else if (line.type === 'end') answer.note = END_NOTES[line.reason] ?? '';
    }
  }

  async #run(operation: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
    this.#controller = new AbortController();
    this.isBusy = true;
    this.error = null;
    try {
      await operation(this.#controller.signal);
    } catch (error) {
      if (!this.#controller.signal.aborted) this.error = toApiError(error);
    } finally {
      this.isBusy = false;
      await this.refresh().catch(() => {});
    }
  }
}
