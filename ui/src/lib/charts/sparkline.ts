/** Points of a small SVG line. */

/** Return `values` as points of a polyline, scaled to `width` by `height` with the largest value at the top; '' for fewer than two. */
export function sparkline(values: number[], width: number, height: number): string {
  if (values.length < 2) return '';
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (index: number): number => (index / (values.length - 1)) * width;
  const y = (value: number): number => (high === low ? height / 2 : ((high - value) / (high - low)) * height);
  return values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
}
