/** Numbers and times as people read them. What isn't known is a dash. */

const UNKNOWN = '–';

export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(Math.max(0, digits - 3));
  return value.toLocaleString('en', { maximumSignificantDigits: Math.max(digits, 1), useGrouping: true });
}

/** A tick of an axis whose ticks are `apart`, so that no two of them read alike. */
export function tick(value: number, apart: number): string {
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(Math.max(1, Math.min(4, Math.ceil(Math.log10(size / apart)))));
  const digits = Math.max(0, -Math.floor(Math.log10(apart)));
  // Ticks 0.025 apart need one digit more than ticks 0.02 apart.
  const isEven = Math.abs(apart * 10 ** digits - Math.round(apart * 10 ** digits)) < 1e-6;
  return value.toLocaleString('en', { maximumFractionDigits: isEven ? digits : digits + 1 });
}

export function whole(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : Math.round(value).toLocaleString('en');
}

export function percent(share: number | null | undefined): string {
  return share === null || share === undefined ? UNKNOWN : `${Math.floor(share * 100)} %`;
}

/** Seconds as the two largest units: 3 h 12 min. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return UNKNOWN;
  const units: [string, number][] = [['d', 86_400], ['h', 3600], ['min', 60], ['s', 1]];
  let left = Math.max(0, Math.round(seconds));
  const parts: string[] = [];
  for (const [name, size] of units) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count > 0 || (name === 's' && parts.length === 0)) parts.push(`${count} ${name}`);
    else if (parts.length > 0) break;
    if (parts.length === 2) break;
  }
  return parts.join(' ');
}

/** The same, with a digit more where it is a few seconds. */
export function brief(seconds: number): string {
  return seconds < 9.95 ? `${Math.max(0, seconds).toFixed(1)} s` : duration(seconds);
}

export function bytes(count: number | null | undefined): string {
  if (count === null || count === undefined) return UNKNOWN;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  return `${number(count / 1024 ** power, 3)} ${units[power]}`;
}

/** How long ago, or the date where that is over a day. */
export function ago(iso: string | null | undefined, now: number = Date.now()): string {
  if (!iso) return UNKNOWN;
  const then = Date.parse(iso);
  const seconds = (now - then) / 1000;
  if (seconds < 45) return 'just now';
  if (seconds < 86_400) return `${duration(Math.round(seconds / 60) * 60)} ago`;
  return new Date(then).toLocaleDateString('en', { day: 'numeric', month: 'short', year: 'numeric' });
}

/** Whichever of the two is a number above one. */
export function speedInWords(secondsPerStep: number): string {
  return secondsPerStep < 1 ? `${number(1 / secondsPerStep, 2)} steps a second` : `${number(secondsPerStep, 2)} s a step`;
}
