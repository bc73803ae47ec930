import { expect, test } from 'vitest';
import { CHARTS, chartsByLine, chartsWith, evaluationSets } from './charts';

test('a single set to evaluate on has no lines of its own', () => {
  expect(evaluationSets(undefined)).toEqual([]);
  expect(evaluationSets({ dataset: { test_size: 0.1 } })).toEqual([]);
  expect(evaluationSets({ dataset: { test_size: 0, eval_source: {} } })).toEqual([]);
  expect(chartsWith([])).toEqual(CHARTS);
});

test('each of several sets has a line beside that of all pairs', () => {
  const sets = evaluationSets({ dataset: { test_size: 0.1, eval_sources: { news: {}, code: {} } } });
  expect(sets).toEqual(['held_out', 'news', 'code']);
  const loss = chartsWith(sets)[0]!;
  expect(loss.lines.map((line) => line.name)).toEqual(['loss', 'eval_loss', 'eval_loss/held_out', 'eval_loss/news', 'eval_loss/code']);
  expect(loss.lines.map((line) => line.label)).toEqual(['training', 'evaluation', 'held_out', 'news', 'code']);
});

test('a comparison has a chart for each set that one of the runs evaluates on', () => {
  const losses = (configs: Parameters<typeof chartsByLine>[0]): string[] => chartsByLine(configs).filter((spec) => spec.lines[0]?.name.includes('loss')).map((spec) => spec.title);
  expect(losses([undefined, { dataset: { test_size: 0.1 } }])).toEqual(['Loss (training)', 'Loss (evaluation)']);
  const [one, other] = [{ dataset: { eval_sources: { news: {}, training: {} } } }, { dataset: { eval_sources: { code: {}, news: {} } } }];
  expect(losses([one, other])).toEqual(['Loss (training)', 'Loss (evaluation)', 'Loss (evaluation on news)', 'Loss (evaluation on training)', 'Loss (evaluation on code)']);
  expect(new Set(chartsByLine([one, other]).map((spec) => spec.lines[0]?.name)).size).toBe(chartsByLine([one, other]).length);
});
