/** Streaming responses with one JSON object per line. */

import { request } from './client';

export async function* jsonLines<T>(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<T> {
  const response = await request('POST', path, body, signal);
  const reader = (response.body as ReadableStream<Uint8Array<ArrayBuffer>>).pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? '')).split('\n');
    rest = done ? '' : (parts.pop() ?? '');
    for (const part of parts) if (part.trim()) yield JSON.parse(part) as T;
    if (done) return;
  }
}
