/** A response that is requested periodically while the page is visible. */

export class Polled<T> {
  value = $state.raw<T | null>(null);
  error = $state<Error | null>(null);
  #timer = 0;
  #isStopped = false;

  constructor(
    private readonly load: () => Promise<T>,
    private readonly intervalMs: number,
  ) {
    void this.refresh();
    document.addEventListener('visibilitychange', this.#onVisible);
  }

  /** Request it now. */
  refresh = async (): Promise<void> => {
    clearTimeout(this.#timer);
    try {
      this.value = await this.load();
      this.error = null;
    } catch (error) {
      this.error = error as Error;
    }
    clearTimeout(this.#timer);
    if (!this.#isStopped && !document.hidden) this.#timer = window.setTimeout(this.refresh, this.intervalMs);
  };

  stop(): void {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    document.removeEventListener('visibilitychange', this.#onVisible);
  }

  #onVisible = (): void => {
    if (!document.hidden) void this.refresh();
  };
}
