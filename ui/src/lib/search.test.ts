import { expect, test } from 'vitest';
import type { HistoryEntry } from '../api/client';
import { matching } from './search';

const run = (output_name: string, status: HistoryEntry['status']): HistoryEntry =>
  ({ job_id: `job_${output_name}`, output_name, status, base_model: 'org/model' }) as HistoryEntry;
const runs = [run('alpha', 'training'), run('beta', 'paused'), run('gamma', 'failed'), run('delta', 'completed')];
const names = (found: HistoryEntry[]): string[] => found.map((each) => each.output_name);

test('every word must match, in any field', () => {
  expect(names(matching(runs, 'ORG  gam', 'all'))).toEqual(['gamma']);
  expect(names(matching(runs, 'org nothing', 'all'))).toEqual([]);
});

test('filters group states', () => {
  expect(names(matching(runs, '', 'running'))).toEqual(['alpha']);
  expect(names(matching(runs, '', 'waiting'))).toEqual(['beta']);
  expect(names(matching(runs, '', 'failed'))).toEqual(['gamma']);
});
