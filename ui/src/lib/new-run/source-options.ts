/** Optional fields of a data set's source, as the texts of their inputs. */

import type { Source } from './sources';

export const ENCODINGS: [string, string][] = [
  ['', 'Detected'],
  ['utf-8', 'UTF-8'],
  ['utf-16', 'UTF-16'],
  ['cp1252', 'Windows-1252 (Western European)'],
  ['latin-1', 'Latin-1'],
];

type Option = 'config_name' | 'revision' | 'data_files' | 'encoding';

/** Return the fields that apply to a source of this type. */
export const optionsOf = (source: Source): Option[] => (source.source_type === 'huggingface' ? ['config_name', 'revision', 'data_files'] : ['encoding']);

export const hasOptions = (source: Source): boolean => optionsOf(source).some((name) => source[name] !== undefined);

/** Return the text of a field; '' for its default. Several files are one per line. */
export function optionText(source: Source, name: Option): string {
  const value = source[name] ?? '';
  return Array.isArray(value) ? value.join('\n') : value;
}

/** Return the source with a field set to a text; without one, the field has its default. */
export function withOptionText(source: Source, name: Option, text: string): Source {
  const { [name]: _before, ...others } = source;
  const lines = text.split('\n').map((line) => line.trim()).filter(Boolean);
  if (lines.length === 0) return others;
  return { ...others, [name]: lines.length === 1 ? lines[0] : lines };
}
