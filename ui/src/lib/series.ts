/** A run's metric rows as columns for charts: steps in order, each once, whatever order and however often they come. */

export type Row = { step: number } & Record<string, unknown>;

export class Series {
  #rows = new Map<number, Record<string, number>>();
  #steps: number[] = [];
  #isSorted = true;

  get size(): number {
    return this.#rows.size;
  }

  get lastStep(): number {
    this.#sort();
    return this.#steps.at(-1) ?? 0;
  }

  /** Figures of a step, added to those it has. What is no number is left out. */
  add(row: Row): void {
    let known = this.#rows.get(row.step);
    if (!known) {
      known = {};
      this.#rows.set(row.step, known);
      if (this.#steps.length > 0 && row.step < (this.#steps.at(-1) as number)) this.#isSorted = false;
      this.#steps.push(row.step);
    }
    for (const [name, value] of Object.entries(row)) {
      if (name !== 'step' && typeof value === 'number' && Number.isFinite(value)) known[name] = value;
    }
  }

  /** Forgets what came after a step: a resumed run takes those steps again. */
  rewind(step: number): void {
    for (const known of [...this.#rows.keys()]) if (known > step) this.#rows.delete(known);
    this.#steps = this.#steps.filter((known) => known <= step);
  }

  /** Keeps about `most` steps, evenly over all of them, and as many evaluations: a run may be watched for as long as it likes. */
  thin(most: number): void {
    this.#sort();
    const [first, last] = [this.#steps[0] ?? 0, this.#steps.at(-1) ?? 0];
    const width = (last - first + 1) / most;
    const taken = new Set<string>();
    const kept = this.#steps.filter((step) => {
      const isEvaluated = Object.keys(this.#rows.get(step) as object).some((name) => name.startsWith('eval_'));
      const stretch = `${Math.floor((step - first) / width)} ${isEvaluated}`;
      if (step !== last && taken.has(stretch)) return false;
      taken.add(stretch);
      return true;
    });
    this.#rows = new Map(kept.map((step) => [step, this.#rows.get(step) as Record<string, number>]));
    this.#steps = kept;
  }

  has(name: string): boolean {
    for (const row of this.#rows.values()) if (name in row) return true;
    return false;
  }

  last(name: string): number | null {
    this.#sort();
    for (let index = this.#steps.length - 1; index >= 0; index -= 1) {
      const value = this.#rows.get(this.#steps[index] as number)?.[name];
      if (value !== undefined) return value;
    }
    return null;
  }

  /** Steps, then one column a name, null where a step lacks it; only steps that have at least one of them. */
  columns(names: string[], from = -Infinity, to = Infinity): [number[], ...(number | null)[][]] {
    this.#sort();
    const steps: number[] = [];
    const columns: (number | null)[][] = names.map(() => []);
    for (const step of this.#steps) {
      if (step < from || step > to) continue;
      const row = this.#rows.get(step) as Record<string, number>;
      if (!names.some((name) => name in row)) continue;
      steps.push(step);
      names.forEach((name, index) => (columns[index] as (number | null)[]).push(row[name] ?? null));
    }
    return [steps, ...columns];
  }

  #sort(): void {
    if (!this.#isSorted) this.#steps.sort((a, b) => a - b);
    this.#isSorted = true;
  }
}

/** Exponential mean over the points that are there, as a quiet line through a noisy one. */
export function smoothed(values: (number | null)[], weight: number): (number | null)[] {
  let mean: number | null = null;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean === null ? value : weight * mean + (1 - weight) * value;
    return mean;
  });
}
