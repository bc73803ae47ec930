import { expect, test } from 'vitest';
import { addressOf, baseOf, pathOf } from './address';

test.each([
  ['http://host/assets/index-1a2b.js', '/'],
  ['https://host/merlina/assets/index-1a2b.js', '/merlina/'],
  ['https://host/tools/merlina/assets/index-1a2b.js', '/tools/merlina/'],
])('a script at %s means that the server answers below %s', (script, base) => {
  expect(baseOf(script, true)).toBe(base);
  expect(pathOf(addressOf('/runs/job_1?a=b', base), base)).toBe('/runs/job_1?a=b');
});

test('addresses outside the page stand for nothing in it', () => {
  expect(pathOf('/other/runs', '/merlina/')).toBeNull();
  expect(pathOf('/merlina', '/merlina/')).toBe('/');
  expect(addressOf('/', '/merlina/')).toBe('/merlina/');
});
