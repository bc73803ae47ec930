/** Remaining time of a run, from the speed of its recent steps: loading, pauses and earlier attempts do not count. */

const WINDOW = 10 * 60_000;
const MAX_STEPS = 200;

export class StepRate {
  #recent: { step: number; at: number }[] = [];

  /** Record that `step` was taken `at` a time in milliseconds. A repeated step restarts the measurement. */
  record(step: number, at: number): void {
    const last = this.#recent.at(-1);
    if (last && step < last.step) this.#recent = [];
    if (last?.step === step) return;
    this.#recent.push({ step, at });
    const oldest = this.#recent.findIndex((each) => each.at >= at - WINDOW);
    this.#recent = this.#recent.slice(Math.max(oldest, this.#recent.length - MAX_STEPS));
  }

  /** Null until two steps were recorded. */
  get secondsPerStep(): number | null {
    const [first, last] = [this.#recent[0], this.#recent.at(-1)];
    if (!first || !last || last.step === first.step) return null;
    return (last.at - first.at) / 1000 / (last.step - first.step);
  }

  /** Return the seconds until step `total`; null until two steps were recorded. */
  secondsUntil(total: number | null | undefined): number | null {
    const perStep = this.secondsPerStep;
    if (perStep === null || !total) return null;
    return perStep * Math.max(0, total - (this.#recent.at(-1)?.step ?? 0));
  }
}
