/** How long a run still takes, from how fast its last steps were: loading, pauses and earlier attempts don't count. */

const WINDOW = 10 * 60_000;
const MOST = 200;

export class Pace {
  #seen: { step: number; at: number }[] = [];

  /** `at` in milliseconds. A step that was passed before begins the measure anew. */
  see(step: number, at: number): void {
    const last = this.#seen.at(-1);
    if (last && step < last.step) this.#seen = [];
    if (last?.step === step) return;
    this.#seen.push({ step, at });
    const oldest = this.#seen.findIndex((each) => each.at >= at - WINDOW);
    this.#seen = this.#seen.slice(Math.max(oldest, this.#seen.length - MOST));
  }

  /** Null while too little was seen. */
  get secondsPerStep(): number | null {
    const [first, last] = [this.#seen[0], this.#seen.at(-1)];
    if (!first || !last || last.step === first.step) return null;
    return (last.at - first.at) / 1000 / (last.step - first.step);
  }

  /** Seconds to the step `total`; null while too little was seen. */
  secondsTo(total: number | null | undefined): number | null {
    const perStep = this.secondsPerStep;
    if (perStep === null || !total) return null;
    return perStep * Math.max(0, total - (this.#seen.at(-1)?.step ?? 0));
  }
}
