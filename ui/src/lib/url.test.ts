import { expect, test } from 'vitest';
import { basePathOf, pathOf, urlFor } from './url';

test.each([
  ['http://host/assets/index-1a2b.js', '/'],
  ['https://host/merlina/assets/index-1a2b.js', '/merlina/'],
  ['https://host/tools/merlina/assets/index-1a2b.js', '/tools/merlina/'],
])('a script at %s means that the server is below %s', (script, base) => {
  expect(basePathOf(script, true)).toBe(base);
  expect(pathOf(urlFor('/runs/job_1?a=b', base), base)).toBe('/runs/job_1?a=b');
});

test('URLs outside the page have no server path', () => {
  expect(pathOf('/other/runs', '/merlina/')).toBeNull();
  expect(pathOf('/merlina', '/merlina/')).toBe('/');
  expect(urlFor('/', '/merlina/')).toBe('/merlina/');
});
