/** Mapping from the columns of a data set to the standard columns. A column with a standard name needs no entry. */

export interface StandardColumn {
  name: string;
  label: string;
  isRequired: boolean;
}

type Mapping = Record<string, string>;

/** Return the standard columns to offer for a training mode. A mapped column is always among them, so that it can be removed. */
export function standardColumns(trainingMode: string, mapping: Mapping): StandardColumn[] {
  const takesUnpaired = trainingMode === 'kto';
  const unpaired = [{ name: 'completion', label: 'Single answer' }, { name: 'label', label: 'Label' }];
  const mapped = Object.values(mapping);
  return [
    { name: 'prompt', label: 'Prompt', isRequired: false },
    { name: 'chosen', label: 'Chosen answer', isRequired: !takesUnpaired },
    { name: 'rejected', label: 'Rejected answer', isRequired: !takesUnpaired },
    ...unpaired.filter(({ name }) => takesUnpaired || mapped.includes(name)).map((column) => ({ ...column, isRequired: false })),
    { name: 'system', label: 'System message', isRequired: false },
    { name: 'reasoning', label: 'Reasoning', isRequired: false },
  ];
}

/** Return the column that `standard` is read from; '' if there is none. */
export function columnFor(standard: string, columns: string[], mapping: Mapping): string {
  const mapped = Object.entries(mapping).find(([, target]) => target === standard)?.[0];
  return mapped ?? (columns.includes(standard) ? standard : '');
}

/** Return the mapping with `standard` read from `column`; '' removes its entry. */
export function withColumn(standard: string, column: string, columns: string[], mapping: Mapping): Mapping {
  const others = Object.entries(mapping).filter(([source, target]) => target !== standard && source !== column);
  const needsNoEntry = column === '' || (column === standard && columns.includes(standard));
  return Object.fromEntries(needsNoEntry ? others : [...others, [column, standard]]);
}
