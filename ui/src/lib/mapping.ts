/** Which column of theirs stands for which of ours; a column that is called as ours needs no word. */

export const OURS = [
  { name: 'prompt', label: 'Prompt', isNeeded: false },
  { name: 'chosen', label: 'Chosen answer', isNeeded: true },
  { name: 'rejected', label: 'Rejected answer', isNeeded: true },
  { name: 'system', label: 'System message', isNeeded: false },
  { name: 'reasoning', label: 'Reasoning', isNeeded: false },
];

type Mapping = Record<string, string>;

export function columnFor(ours: string, columns: string[], mapping: Mapping): string {
  const mapped = Object.entries(mapping).find(([, target]) => target === ours)?.[0];
  return mapped ?? (columns.includes(ours) ? ours : '');
}

/** The mapping once `ours` is taken from `column`; from none where that is empty. */
export function mappingWith(ours: string, column: string, columns: string[], mapping: Mapping): Mapping {
  const others = Object.entries(mapping).filter(([theirs, target]) => target !== ours && theirs !== column);
  const isPlain = column === '' || (column === ours && columns.includes(ours));
  return Object.fromEntries(isPlain ? others : [...others, [column, ours]]);
}
