/** A run's WebSocket, reconnected after the last event received whenever the connection is lost. */

import { urlFor } from '../lib/url';
import type { components } from './types';

export type Connection = 'connecting' | 'live' | 'lost' | 'ended';

export type Message = components['schemas']['LiveMessage'];

/** Without a message for this long, the page sends a heartbeat; after twice as long, it reconnects. */
const HEARTBEAT_MS = 15_000;
const MIN_RETRY_MS = 500;
const MAX_RETRY_MS = 5000;
const CLOSE_JOB_ENDED = 1000;
const CLOSE_UNKNOWN_JOB = 4404;

export class LiveConnection {
  #socket: WebSocket | null = null;
  #retryTimer = 0;
  #retryMs = MIN_RETRY_MS;
  #isClosed = false;
  #receivedAt = 0;
  #heartbeatTimer = 0;

  constructor(
    private readonly job: string,
    private seq: number,
    private readonly onMessage: (message: Message) => void,
    private readonly onConnection: (connection: Connection) => void,
  ) {
    this.#open();
    this.#heartbeatTimer = window.setInterval(this.#checkHeartbeat, HEARTBEAT_MS);
    addEventListener('online', this.#reconnectNow);
    document.addEventListener('visibilitychange', this.#reconnectNow);
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#retryTimer);
    clearInterval(this.#heartbeatTimer);
    removeEventListener('online', this.#reconnectNow);
    document.removeEventListener('visibilitychange', this.#reconnectNow);
    this.#socket?.close();
  }

  /** Skip the retry delay when the page becomes visible or the network returns. */
  #reconnectNow = (): void => {
    if (this.#isClosed || document.hidden) return;
    this.#checkHeartbeat();
    if (this.#socket) return;
    clearTimeout(this.#retryTimer);
    this.#retryMs = MIN_RETRY_MS;
    this.#open();
  };

  /** Detect connections that died without a close event, for example while the computer slept. */
  #checkHeartbeat = (): void => {
    const socket = this.#socket;
    if (!socket || Date.now() - this.#receivedAt < HEARTBEAT_MS) return;
    if (Date.now() - this.#receivedAt < 2 * HEARTBEAT_MS && socket.readyState === WebSocket.OPEN) {
      socket.send('{"type":"heartbeat"}');
      return;
    }
    // The close event of a dead connection may never be fired.
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#socket = null;
    clearTimeout(this.#retryTimer);
    this.#open();
  };

  #open(): void {
    this.#receivedAt = Date.now();
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const path = urlFor(`/ws/${encodeURIComponent(this.job)}?after=${this.seq}`);
    const socket = new WebSocket(`${scheme}://${location.host}${path}`);
    this.#socket = socket;
    socket.onopen = () => {
      this.#retryMs = MIN_RETRY_MS;
      this.onConnection('live');
    };
    socket.onmessage = (event) => {
      this.#receivedAt = Date.now();
      const message = JSON.parse(String(event.data)) as Message;
      if ('seq' in message) this.seq = Math.max(this.seq, message.seq);
      this.onMessage(message);
    };
    socket.onclose = (event) => this.#onClose(event.code);
  }

  #onClose(code: number): void {
    this.#socket = null;
    if (this.#isClosed) return;
    if (code === CLOSE_JOB_ENDED || code === CLOSE_UNKNOWN_JOB) {
      this.onConnection('ended');
      return;
    }
    this.onConnection('lost');
    this.#retryTimer = window.setTimeout(() => this.#open(), this.#retryMs);
    this.#retryMs = Math.min(MAX_RETRY_MS, this.#retryMs * 2);
  }
}
