/** Rows of a data set with the pairs that they become, from the responses of both previews. */

import type { Preview } from '../../api/client';
import { integer } from '../format';

type FindingKind = NonNullable<Preview['rows']>[number]['findings'][number];

/** A pair as text, with `model_name` also as tokens. `row` is the number of its row in the data set, from 1. */
export type Sample = Record<string, unknown> & {
  row: number;
  form?: string | null;
  tokens?: Record<string, { ids: number[]; pieces: string[]; special: number[]; count: number }>;
  cut?: Record<string, number>;
};

export interface PreviewedRow {
  /** Number of the row, from 1. */
  row: number;
  /** Number of the last of merged rows, otherwise of the same row. */
  lastRow: number;
  stored: Record<string, unknown>[];
  findings: FindingKind[];
  /** Why the row cannot be used. */
  reason: string | null;
  /** Number of its pairs, of which `samples` has the first; null if the rows are not formatted. */
  pairs: number | null;
  samples: Sample[];
}

/** Findings on a single row, as labels of the row and of the filter. */
export const FINDING_LABELS: Record<FindingKind, string> = {
  unusable: 'Cannot be used',
  empty_side: 'Prompt or answer missing',
  differing_prompts: 'Answers to different prompts',
  dropped_duplicates: 'Dropped: repeats an earlier row',
  dropped_identical_answers: 'Dropped: identical answers',
  dropped_overlong: 'Dropped: too long',
  identical_answers: 'Identical answers',
  duplicates: 'Repeats an earlier row',
  already_formatted: 'Already formatted',
  markers_in_text: 'Markers in the text',
  prompt_rearranged: 'Prompt rendered differently',
  system_dropped: 'System message not rendered',
  thought_restored: 'Reasoning restored',
  reasoning_unused: 'Reasoning not trained',
  over_max_length: 'Truncated',
  same_after_truncation: 'Identical once truncated',
  parsed_from_text: 'Parsed from text',
};

/** Whether rows can be searched for findings of this kind. Other kinds concern the data set. */
export const isOfRows = (kind: string): kind is FindingKind => kind in FINDING_LABELS;

/** Return the choices of the filter: all rows, those with findings, and the kinds that were found or are selected. */
export function filterOptions(found: string[], selected: string): [string, string][] {
  const kinds = Object.keys(FINDING_LABELS).filter((kind) => found.includes(kind) || kind === selected);
  return [['', 'All rows'], ['findings', 'Rows with findings'], ...kinds.map((kind): [string, string] => [kind, FINDING_LABELS[kind as FindingKind]])];
}

/** Return the rows of a formatted preview. */
export function formattedRows(preview: Preview): PreviewedRow[] {
  const samples = preview.samples as Sample[];
  return (preview.rows ?? []).map(({ row, last_row, stored, findings, reason, pairs }) => ({
    row,
    lastRow: last_row,
    stored,
    findings,
    reason: reason ?? null,
    pairs,
    samples: samples.filter((sample) => sample.row === row),
  }));
}

/** Return the rows of a preview of stored rows, of which the first has the number `first`. */
export function storedRows(preview: Preview, first: number): PreviewedRow[] {
  return preview.samples.map((stored, index) => ({ row: first + index, lastRow: first + index, stored: [stored], findings: [], reason: null, pairs: null, samples: [] }));
}

/** Return the text in place of the pairs that are not shown; '' if all are. */
export function missingPairs({ pairs, reason, samples }: PreviewedRow): string {
  if (pairs === null) return 'Not formatted. See the message above.';
  if (pairs === 0) return `This row cannot be used: ${reason ?? 'it gives no pair'}.`;
  return samples.length < pairs ? `The first ${samples.length} of ${integer(pairs)} pairs are shown.` : '';
}
