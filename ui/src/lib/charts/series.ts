/** The metrics of a run as columns for charts. Rows may be added in any order and repeatedly. */

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

  /** Merge the metrics of a step with those it has. Values that are not finite numbers are ignored. */
  add(row: Row): void {
    let metrics = this.#rows.get(row.step);
    if (!metrics) {
      metrics = {};
      this.#rows.set(row.step, metrics);
      if (this.#steps.length > 0 && row.step < (this.#steps.at(-1) as number)) this.#isSorted = false;
      this.#steps.push(row.step);
    }
    for (const [name, value] of Object.entries(row)) {
      if (name !== 'step' && typeof value === 'number' && Number.isFinite(value)) metrics[name] = value;
    }
  }

  /** Remove all steps after `step`: a resumed run repeats them. */
  truncateAfter(step: number): void {
    for (const each of [...this.#rows.keys()]) if (each > step) this.#rows.delete(each);
    this.#steps = this.#steps.filter((each) => each <= step);
  }

  /** Keep about `max` evenly spaced steps and as many evaluations, which bounds memory while a run is watched for days. */
  downsample(max: number): void {
    this.#sort();
    const [first, last] = [this.#steps[0] ?? 0, this.#steps.at(-1) ?? 0];
    const width = (last - first + 1) / max;
    const occupied = new Set<string>();
    const kept = this.#steps.filter((step) => {
      const isEvaluation = Object.keys(this.#rows.get(step) as object).some((name) => name.startsWith('eval_'));
      const bucket = `${Math.floor((step - first) / width)} ${isEvaluation}`;
      if (step !== last && occupied.has(bucket)) return false;
      occupied.add(bucket);
      return true;
    });
    this.#rows = new Map(kept.map((step) => [step, this.#rows.get(step) as Record<string, number>]));
    this.#steps = kept;
  }

  has(name: string): boolean {
    for (const row of this.#rows.values()) if (name in row) return true;
    return false;
  }

  /** Return the newest value of a metric; null if there is none. */
  last(name: string): number | null {
    this.#sort();
    for (let index = this.#steps.length - 1; index >= 0; index -= 1) {
      const value = this.#rows.get(this.#steps[index] as number)?.[name];
      if (value !== undefined) return value;
    }
    return null;
  }

  /** Return the steps that have at least one of the metrics, then one column per metric with null for missing values. */
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

/** Return the exponential moving average of the values that are not null; `weight` is that of the past. */
export function smoothed(values: (number | null)[], weight: number): (number | null)[] {
  let mean: number | null = null;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean === null ? value : weight * mean + (1 - weight) * value;
    return mean;
  });
}
