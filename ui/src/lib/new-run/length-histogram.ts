/** The histogram of the lengths of pairs, as bars and words. */

import type { LengthHistogram } from '../../api/client';
import { integer } from '../format';

export interface Bar {
  /** Height as a fraction of the highest bar. */
  share: number;
  label: string;
  /** Whether its range exceeds the maximum length. */
  isOver: boolean;
}

/** Return one bar per bin. `maxLength` is in tokens. */
export function barsOf({ counts, edges, unit }: LengthHistogram, maxLength: number): Bar[] {
  const highest = Math.max(...counts);
  return counts.map((count, index) => {
    const [from, to] = [edges[index] as number, (edges[index + 1] as number) - 1];
    return { share: count / highest, label: `${rangeText(from, to)} ${unit}: ${integer(count)} ${count === 1 ? 'pair' : 'pairs'}`, isOver: unit === 'tokens' && to > maxLength };
  });
}

/** Return the label of the right end of the axis: the longest length, or the range of a last bin that is wider than the others. */
export function axisEnd({ edges, longest, unit }: LengthHistogram): string {
  const [width, lastEdge] = [(edges[1] as number) - (edges[0] as number), edges.at(-2) as number];
  return `${longest - lastEdge < width ? integer(longest) : rangeText(lastEdge, longest)} ${unit}`;
}

const rangeText = (from: number, to: number): string => (from === to ? integer(from) : `${integer(from)} to ${integer(to)}`);

/** Return what the histogram shows, and of which rows. */
export function describeLengths({ counts, unit, median, longest }: LengthHistogram, rowsExamined: number): string {
  const pairs = counts.reduce((sum, count) => sum + count, 0);
  return `Lengths of ${integer(pairs)} ${pairs === 1 ? 'pair' : 'pairs'} in the first ${integer(rowsExamined)} rows, in ${unit}: median ${integer(median)}, longest ${integer(longest)}.`;
}
