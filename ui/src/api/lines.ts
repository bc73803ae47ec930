/** Answers that come while they are made, one JSON object a line. */

import { ApiError } from './client';

export async function* lines<T>(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<T> {
  const response = await fetch(path, { method: 'POST', body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' }, signal });
  if (!response.ok || !response.body) {
    const answer = (await response.json().catch(() => null)) as { detail?: string | { message: string; errors: string[] } } | null;
    const detail = answer?.detail;
    throw typeof detail === 'object' ? new ApiError(response.status, detail.message, detail.errors) : new ApiError(response.status, detail ?? `The server answered with ${response.status}.`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? '')).split('\n');
    rest = done ? '' : (parts.pop() ?? '');
    for (const part of parts) if (part.trim()) yield JSON.parse(part) as T;
    if (done) return;
  }
}
