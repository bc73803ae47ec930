/** A run's WebSocket, taken up again behind the last event seen whenever it breaks. */

export type Connection = 'connecting' | 'live' | 'broken' | 'ended';

export interface Message {
  type: 'status_update' | 'metrics' | 'log' | 'completed' | 'error' | 'heartbeat';
  seq: number;
  timestamp: number;
  [field: string]: unknown;
}

const FIRST_WAIT = 500;
const LONGEST_WAIT = 5000;
const CLOSED_BY_END = 1000;
const NO_SUCH_JOB = 4404;

export class LiveRun {
  #socket: WebSocket | null = null;
  #timer = 0;
  #wait = FIRST_WAIT;
  #closed = false;

  constructor(
    private readonly job: string,
    private seq: number,
    private readonly onMessage: (message: Message) => void,
    private readonly onConnection: (connection: Connection) => void,
  ) {
    this.#open();
    addEventListener('online', this.#hurry);
    document.addEventListener('visibilitychange', this.#hurry);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    removeEventListener('online', this.#hurry);
    document.removeEventListener('visibilitychange', this.#hurry);
    this.#socket?.close();
  }

  /** A laptop was opened, or the network is back: no need to wait any longer. */
  #hurry = (): void => {
    if (this.#socket || this.#closed || document.hidden) return;
    clearTimeout(this.#timer);
    this.#wait = FIRST_WAIT;
    this.#open();
  };

  #open(): void {
    this.onConnection('connecting');
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const socket = new WebSocket(`${scheme}://${location.host}/ws/${encodeURIComponent(this.job)}?after=${this.seq}`);
    this.#socket = socket;
    socket.onopen = () => {
      this.#wait = FIRST_WAIT;
      this.onConnection('live');
    };
    socket.onmessage = (event) => {
      const message = JSON.parse(String(event.data)) as Message;
      this.seq = Math.max(this.seq, message.seq ?? 0);
      this.onMessage(message);
    };
    socket.onclose = (event) => this.#onClose(event.code);
  }

  #onClose(code: number): void {
    this.#socket = null;
    if (this.#closed) return;
    if (code === CLOSED_BY_END || code === NO_SUCH_JOB) {
      this.onConnection('ended');
      return;
    }
    this.onConnection('broken');
    this.#timer = window.setTimeout(() => this.#open(), this.#wait);
    this.#wait = Math.min(LONGEST_WAIT, this.#wait * 2);
  }
}
