/** How long a run will take, from the pairs at hand and from how fast an earlier run was. */

import { FIELDS } from './fields';
import type { Values } from './draft';

export interface Measured {
  /** Of the data set; null where only reading all of it would tell. */
  rows: number | null;
  /** Mean over the pairs that were looked at, each prompt counted with both its answers. */
  tokensPerPair: number | null;
}

export interface Speed {
  tokensPerSecond: number;
  run: string;
}

/** Seconds of all optimizer steps, without evaluations; null where something isn't known. */
export function secondsOf(values: Values, testSize: number, measured: Measured, speed: Speed | null): number | null {
  if (measured.rows === null || measured.tokensPerPair === null || speed === null) return null;
  const value = (name: string): number => Number(values[name] ?? FIELDS.get(name)?.initial);
  const perStep = value('batch_size') * value('gradient_accumulation_steps');
  const pairs = Math.max(1, measured.rows - Math.round(measured.rows * testSize));
  const steps = values.max_steps ? Number(values.max_steps) : Math.ceil(pairs / perStep) * value('num_epochs');
  return (steps * Math.min(perStep, pairs) * measured.tokensPerPair) / speed.tokensPerSecond;
}

export function median(numbers: number[]): number | null {
  if (numbers.length === 0) return null;
  const sorted = numbers.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? null;
}
