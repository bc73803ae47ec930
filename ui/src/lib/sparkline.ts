/** A course of figures as the points of a small SVG line. */

/** `width` by `height`, the first point at the left, the largest figure at the top; '' where there is no line to draw. */
export function sparkline(values: number[], width: number, height: number): string {
  if (values.length < 2) return '';
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const across = (place: number): number => (place / (values.length - 1)) * width;
  const down = (value: number): number => (high === low ? height / 2 : ((high - value) / (high - low)) * height);
  return values.map((value, place) => `${across(place).toFixed(1)},${down(value).toFixed(1)}`).join(' ');
}
