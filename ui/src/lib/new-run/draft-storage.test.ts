import { expect, test } from 'vitest';
import { DEFAULT_DATA } from './draft';
import { storedDrafts, storageKey } from './draft-storage';

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

test('drafts are found by the run that they copy, and other items are ignored', () => {
  const draft = { model: 'm', name: 'n', isNamed: true, data: DEFAULT_DATA, values: { lora_r: 8 }, invalid: { seed: { text: 'x', message: 'must be a number, not x' } } };
  const store = new Store();
  store.setItem(storageKey(null), JSON.stringify(draft));
  store.setItem(storageKey('job_1'), JSON.stringify({ ...draft, model: 'other' }));
  store.setItem('merlina-theme', 'dark');
  expect(storedDrafts(store).get(storageKey(null))).toEqual(draft);
  expect(storedDrafts(store).get(storageKey('job_1'))?.model).toBe('other');
  expect(storedDrafts(store).size).toBe(2);
});

test.each(['', '{', '{}', '{"model": 1}', 'null'])('%s is not a draft', (text) => {
  const store = new Store();
  store.setItem(storageKey(null), text);
  expect(storedDrafts(store).size).toBe(0);
});

test('a draft of an older page, with one source only, is not restored', () => {
  const store = new Store();
  store.setItem(storageKey(null), JSON.stringify({ model: 'm', name: 'n', data: { source: null, mapping: {}, templates: {} }, values: {} }));
  expect(storedDrafts(store).size).toBe(0);
});
