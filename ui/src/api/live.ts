/** A run's WebSocket, taken up again behind the last event seen whenever it breaks. */

import { addressOf } from '../lib/address';

export type Connection = 'connecting' | 'live' | 'broken' | 'ended';

export interface Message {
  type: 'status_update' | 'metrics' | 'log' | 'completed' | 'error' | 'request' | 'heartbeat';
  seq: number;
  timestamp: number;
  [field: string]: unknown;
}

/** After so much silence the server is asked for a sign of life, and after as much again the connection is given up. */
const SILENCE = 15_000;
const FIRST_WAIT = 500;
const LONGEST_WAIT = 5000;
const CLOSED_BY_END = 1000;
const NO_SUCH_JOB = 4404;

export class LiveRun {
  #socket: WebSocket | null = null;
  #timer = 0;
  #wait = FIRST_WAIT;
  #closed = false;
  #heardAt = 0;
  #watchdog = 0;

  constructor(
    private readonly job: string,
    private seq: number,
    private readonly onMessage: (message: Message) => void,
    private readonly onConnection: (connection: Connection) => void,
  ) {
    this.#open();
    this.#watchdog = window.setInterval(this.#watch, SILENCE);
    addEventListener('online', this.#hurry);
    document.addEventListener('visibilitychange', this.#hurry);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearInterval(this.#watchdog);
    removeEventListener('online', this.#hurry);
    document.removeEventListener('visibilitychange', this.#hurry);
    this.#socket?.close();
  }

  /** A laptop was opened, or the network is back: no need to wait any longer. */
  #hurry = (): void => {
    if (this.#closed || document.hidden) return;
    this.#watch();
    if (this.#socket) return;
    clearTimeout(this.#timer);
    this.#wait = FIRST_WAIT;
    this.#open();
  };

  /** A connection may be dead without either end having been told, as after a night's sleep. */
  #watch = (): void => {
    const socket = this.#socket;
    if (!socket || Date.now() - this.#heardAt < SILENCE) return;
    if (Date.now() - this.#heardAt < 2 * SILENCE && socket.readyState === WebSocket.OPEN) {
      socket.send('{"type":"heartbeat"}');
      return;
    }
    // Its own end may never be told, so that nothing waits for it.
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#socket = null;
    clearTimeout(this.#timer);
    this.#open();
  };

  #open(): void {
    this.#heardAt = Date.now();
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const address = addressOf(`/ws/${encodeURIComponent(this.job)}?after=${this.seq}`);
    const socket = new WebSocket(`${scheme}://${location.host}${address}`);
    this.#socket = socket;
    socket.onopen = () => {
      this.#wait = FIRST_WAIT;
      this.onConnection('live');
    };
    socket.onmessage = (event) => {
      this.#heardAt = Date.now();
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
