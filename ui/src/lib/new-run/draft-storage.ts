/** Drafts in a tab's session storage, which survive a reload. They never contain tokens. */

import type { DataDraft, Values } from './draft';
import type { InvalidInput } from './fields';

export interface StoredDraft {
  model: string;
  name: string;
  isNamed: boolean;
  data: DataDraft;
  values: Values;
  invalid: Record<string, InvalidInput>;
}

const PREFIX = 'merlina-draft:';

/** Return the storage key of the draft that copies the run `from`, or of a new one. */
export const storageKey = (from: string | null): string => `${PREFIX}${from ?? ''}`;

/** Return all stored drafts by key, without those that cannot be read, for example after an upgrade of the page. */
export function storedDrafts(storage: Storage): Map<string, StoredDraft> {
  const drafts = new Map<string, StoredDraft>();
  for (let index = 0; index < storage.length; index += 1) {
    const key = storage.key(index) ?? '';
    const draft = key.startsWith(PREFIX) ? parsed(storage.getItem(key) ?? '') : null;
    if (draft) drafts.set(key, draft);
  }
  return drafts;
}

function parsed(text: string): StoredDraft | null {
  try {
    const { model, name, isNamed, data, values, invalid } = JSON.parse(text) as Partial<StoredDraft>;
    const isComplete = typeof model === 'string' && typeof name === 'string' && data?.mapping && data.templates && data.sources && data.evaluationSets && values;
    return isComplete ? { model, name, isNamed: isNamed === true, data, values, invalid: invalid ?? {} } : null;
  } catch {
    return null;
  }
}
