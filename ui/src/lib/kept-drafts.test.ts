import { expect, test } from 'vitest';
import { EMPTY_DATA } from './draft';
import { keptDrafts, keyOf } from './kept-drafts';

class Store {
  readonly #items = new Map<string, string>();
  get length(): number {
    return this.#items.size;
  }
  key = (index: number): string | null => [...this.#items.keys()][index] ?? null;
  getItem = (key: string): string | null => this.#items.get(key) ?? null;
  setItem = (key: string, text: string): void => void this.#items.set(key, text);
  removeItem = (key: string): void => void this.#items.delete(key);
  clear = (): void => this.#items.clear();
}

test('drafts are found by the run they begin with, and other items are left alone', () => {
  const draft = { model: 'm', name: 'n', isNamed: true, data: EMPTY_DATA, values: { lora_r: 8 }, invalid: { seed: { text: 'x', failure: 'x is no number' } } };
  const store = new Store();
  store.setItem(keyOf(null), JSON.stringify(draft));
  store.setItem(keyOf('job_1'), JSON.stringify({ ...draft, model: 'other' }));
  store.setItem('merlina-theme', 'dark');
  expect(keptDrafts(store).get(keyOf(null))).toEqual(draft);
  expect(keptDrafts(store).get(keyOf('job_1'))?.model).toBe('other');
  expect(keptDrafts(store).size).toBe(2);
});

test.each(['', '{', '{}', '{"model": 1}', 'null'])('%s is no draft', (text) => {
  const store = new Store();
  store.setItem(keyOf(null), text);
  expect(keptDrafts(store).size).toBe(0);
});
