/** Drafts in the session storage of a tab, which outlive a reload. They never hold tokens. */

import type { DataDraft, Values } from './draft';
import type { Refused } from './fields';

export interface KeptDraft {
  model: string;
  name: string;
  isNamed: boolean;
  data: DataDraft;
  values: Values;
  invalid: Record<string, Refused>;
}

const PREFIX = 'merlina-draft:';

/** The key of the draft that begins with the settings of the run `from`, or with none. */
export const keyOf = (from: string | null): string => `${PREFIX}${from ?? ''}`;

/** All drafts in a storage, by key. What cannot be read, as after an upgrade of the page, is left out. */
export function keptDrafts(storage: Storage): Map<string, KeptDraft> {
  const found = new Map<string, KeptDraft>();
  for (let index = 0; index < storage.length; index += 1) {
    const key = storage.key(index) ?? '';
    const draft = key.startsWith(PREFIX) ? parsed(storage.getItem(key) ?? '') : null;
    if (draft) found.set(key, draft);
  }
  return found;
}

function parsed(text: string): KeptDraft | null {
  try {
    const { model, name, isNamed, data, values, invalid } = JSON.parse(text) as Partial<KeptDraft>;
    const isWhole = typeof model === 'string' && typeof name === 'string' && data?.mapping && data.templates && values;
    return isWhole ? { model, name, isNamed: isNamed === true, data, values, invalid: invalid ?? {} } : null;
  } catch {
    return null;
  }
}
