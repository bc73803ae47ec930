import { expect, test } from 'vitest';
import { routeOf } from './route';

test('each view has its path', () => {
  expect(routeOf('/')).toEqual({ view: 'runs' });
  expect(routeOf('/runs/')).toEqual({ view: 'runs' });
  expect(routeOf('/runs/job_1')).toEqual({ view: 'run', job: 'job_1' });
  expect(routeOf('/runs/job_1/chat')).toEqual({ view: 'chat', job: 'job_1' });
  expect(routeOf('/new', '?from=job_1')).toEqual({ view: 'new', from: 'job_1' });
  expect(routeOf('/compare', '?runs=a,b')).toEqual({ view: 'compare', jobs: ['a', 'b'] });
  expect(routeOf('/machine').view).toBe('machine');
});

test('any other path is not found', () => {
  expect(routeOf('/runs/%E0%A4%A')).toEqual({ view: 'run', job: '%E0%A4%A' });
  expect([routeOf('/else'), routeOf('/runs/a/b'), routeOf('/new/x')]).toEqual(Array(3).fill({ view: 'not-found' }));
});
