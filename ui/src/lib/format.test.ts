import { expect, test } from 'vitest';
import { bytes, capitalized, duration, number, percent, shortDuration, speed, tick, timeAgo } from './format';

test('neighboring ticks have different labels', () => {
  expect([2.763, 2.7635, 2.764].map((value) => tick(value, 0.0005))).toEqual(['2.763', '2.7635', '2.764']);
  expect([0, 0.5, 1].map((value) => tick(value, 0.5))).toEqual(['0', '0.5', '1']);
  expect([0, 5e-5, 1e-4].map((value) => tick(value, 5e-5))).toEqual(['0', '5.0e-5', '1.0e-4']);
  expect(tick(20_000, 5000)).toBe('20,000');
  expect([0.025, 0.05, 0.075].map((value) => tick(value, 0.025))).toEqual(['0.025', '0.05', '0.075']);
});

test('durations below ten seconds have one decimal', () => {
  expect([-1, 0.04, 2.46, 9.97, 61].map(shortDuration)).toEqual(['0.0 s', '0.0 s', '2.5 s', '10 s', '1 min 1 s']);
});

test('durations are formatted in their two largest units', () => {
  expect([0, 59, 60, 61, 3600, 3661, 90_000].map(duration)).toEqual(['0 s', '59 s', '1 min', '1 min 1 s', '1 h', '1 h 1 min', '1 d 1 h']);
});

test('messages are capitalized, identifiers and paths are not', () => {
  expect(['the file is empty', 'lora_r is unused', 'org/name is gated'].map(capitalized)).toEqual(['The file is empty', 'lora_r is unused', 'org/name is gated']);
});

test('unknown values are a dash', () => {
  expect([number(null), number(Number.NaN), duration(undefined), percent(null), bytes(null), timeAgo(null)]).toEqual(Array(6).fill('–'));
});

test('small and large numbers keep their digits', () => {
  expect([number(0), number(5e-6), number(0.25), number(1234.567), number(2e9)]).toEqual(['0', '5.0e-6', '0.25', '1,235', '2.0e+9']);
});

test('a percentage is never rounded up to 100', () => {
  expect(percent(0.999)).toBe('99%');
});

test('sizes are formatted in their largest unit', () => {
  expect([bytes(0), bytes(999), bytes(1536), bytes(2 * 1024 ** 3)]).toEqual(['0 B', '999 B', '1.5 KiB', '2 GiB']);
});

test('times more than a day ago are dates', () => {
  const now = Date.parse('2026-01-10T12:00:00Z');
  expect(timeAgo('2026-01-10T11:59:30Z', now)).toBe('just now');
  expect(timeAgo('2026-01-10T11:00:00Z', now)).toBe('1 h ago');
  expect(timeAgo('2026-01-02T11:00:00Z', now)).toBe('Jan 2, 2026');
});

test('a speed is in the unit in which it is at least 1', () => {
  expect(speed(0.25)).toBe('4 steps/s');
  expect(speed(12.34)).toBe('12 s/step');
});
