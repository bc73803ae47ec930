/** Numbers and times formatted for display. Unknown values are shown as a dash. */

const UNKNOWN = '–';

/** Capitalize a message unless it starts with an identifier or a path. */
export function capitalized(text: string): string {
  return /^[a-z]+[ ,:’']/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
}

export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(Math.max(0, digits - 3));
  return value.toLocaleString('en', { maximumSignificantDigits: Math.max(digits, 1), useGrouping: true });
}

/** Format a tick of an axis with enough digits to distinguish it from its neighbors, which are `interval` away. */
export function tick(value: number, interval: number): string {
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(Math.max(1, Math.min(4, Math.ceil(Math.log10(size / interval)))));
  const digits = Math.max(0, -Math.floor(Math.log10(interval)));
  // An interval of 0.025 needs one digit more than an interval of 0.02.
  const isExact = Math.abs(interval * 10 ** digits - Math.round(interval * 10 ** digits)) < 1e-6;
  return value.toLocaleString('en', { maximumFractionDigits: isExact ? digits : digits + 1 });
}

export function integer(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : Math.round(value).toLocaleString('en');
}

/** Rounded down, so that 100% means finished. */
export function percent(fraction: number | null | undefined): string {
  return fraction === null || fraction === undefined ? UNKNOWN : `${Math.floor(fraction * 100)}%`;
}

/** Format seconds in their two largest units: 3 h 12 min. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return UNKNOWN;
  const units: [string, number][] = [['d', 86_400], ['h', 3600], ['min', 60], ['s', 1]];
  let remaining = Math.max(0, Math.round(seconds));
  const parts: string[] = [];
  for (const [name, size] of units) {
    const count = Math.floor(remaining / size);
    remaining -= count * size;
    if (count > 0 || (name === 's' && parts.length === 0)) parts.push(`${count} ${name}`);
    else if (parts.length > 0) break;
    if (parts.length === 2) break;
  }
  return parts.join(' ');
}

/** `duration` with one decimal below ten seconds. */
export function shortDuration(seconds: number): string {
  return seconds < 9.95 ? `${Math.max(0, seconds).toFixed(1)} s` : duration(seconds);
}

export function bytes(count: number | null | undefined): string {
  if (count === null || count === undefined) return UNKNOWN;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  return `${number(count / 1024 ** power, 3)} ${units[power]}`;
}

/** Format a time relative to `now`, or as a date if it is more than a day ago. */
export function timeAgo(iso: string | null | undefined, now: number = Date.now()): string {
  if (!iso) return UNKNOWN;
  const then = Date.parse(iso);
  const seconds = (now - then) / 1000;
  if (seconds < 45) return 'just now';
  if (seconds < 86_400) return `${duration(Math.round(seconds / 60) * 60)} ago`;
  return new Date(then).toLocaleDateString('en', { day: 'numeric', month: 'short', year: 'numeric' });
}

/** Format a speed as steps per second, or as seconds per step if that is at least 1. */
export function speed(secondsPerStep: number): string {
  return secondsPerStep < 1 ? `${number(1 / secondsPerStep, 2)} steps/s` : `${number(secondsPerStep, 2)} s/step`;
}
