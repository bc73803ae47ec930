/** The charts of a run: which metrics each one shows, and their labels. */

import type { Values } from '../new-run/draft';

export interface Line {
  name: string;
  label: string;
  color: string;
  dash?: number[];
  points?: boolean;
  /** Whether values vary from step to step, so that smoothing applies. */
  isNoisy?: boolean;
}

export interface ChartSpec {
  title: string;
  help: string;
  /** Values that the vertical axis always includes: [lowest] or [lowest, highest]. */
  axisIncludes?: [number] | [number, number];
  lines: Line[];
}

export const CHARTS: ChartSpec[] = [
  {
    title: 'Loss',
    help: 'A rising evaluation loss while training loss keeps falling indicates overfitting.',
    lines: [
      { name: 'loss', label: 'training', color: '--chart-1', isNoisy: true },
      { name: 'eval_loss', label: 'evaluation', color: '--chart-2', points: true, dash: [6, 4] },
    ],
  },
  {
    title: 'Reward margin',
    help: 'Difference between the rewards of the chosen and the rejected answer.',
    lines: [
      { name: 'reward_margin', label: 'training', color: '--chart-1', isNoisy: true },
      { name: 'eval_reward_margin', label: 'evaluation', color: '--chart-2', points: true, dash: [6, 4] },
    ],
  },
  {
    title: 'Accuracy',
    help: 'Share of pairs in which the chosen answer has the higher reward. 0.5 is chance level.',
    axisIncludes: [0, 1],
    lines: [
      { name: 'reward_accuracy', label: 'training', color: '--chart-1', isNoisy: true },
      { name: 'eval_reward_accuracy', label: 'evaluation', color: '--chart-2', points: true, dash: [6, 4] },
    ],
  },
  {
    title: 'Log-probabilities',
    help: 'Mean log-probability per answer token. A sharp drop for chosen answers indicates degradation.',
    lines: [
      { name: 'logps_chosen', label: 'chosen', color: '--chosen', isNoisy: true },
      { name: 'logps_rejected', label: 'rejected', color: '--rejected', dash: [2, 3], isNoisy: true },
    ],
  },
  { title: 'Learning rate', help: 'Learning rate of the optimizer.', lines: [{ name: 'learning_rate', label: 'learning rate', color: '--chart-1' }] },
  { title: 'Gradient norm', help: 'Global gradient norm before clipping. Spikes indicate unstable steps.', lines: [{ name: 'grad_norm', label: 'norm', color: '--chart-1', isNoisy: true }] },
  { title: 'Throughput', help: 'Tokens per second. Each prompt is counted with both of its answers.', axisIncludes: [0], lines: [{ name: 'tokens_per_second', label: 'tokens/s', color: '--chart-1', isNoisy: true }] },
  {
    title: 'Memory',
    help: 'Memory held by the run, in GiB.',
    axisIncludes: [0],
    lines: [
      { name: 'memory_gib', label: 'RAM', color: '--chart-1' },
      { name: 'gpu_memory', label: 'GPU', color: '--chart-2', dash: [6, 4] },
    ],
  },
];

const SET_COLORS = ['--chosen', '--rejected', '--text', '--text-muted'];

/** Return the names of the sets that a configuration evaluates on; none if there is only one, since its metrics are the overall ones. */
export function evaluationSets(config: Values | undefined): string[] {
  const dataset = (config?.dataset ?? {}) as { test_size?: number; eval_source?: unknown; eval_sources?: Record<string, unknown> | null };
  const names = Object.keys(dataset.eval_sources ?? {});
  if (dataset.eval_source) names.push('eval_source');
  if (dataset.test_size && names.length > 0) names.unshift('held_out');
  return names.length > 1 ? names : [];
}

/** Return the charts with a line for each set beside every line of evaluations. */
export function chartsWith(sets: string[]): ChartSpec[] {
  const lineOf = (line: Line, set: string, index: number): Line => ({ name: `${line.name}/${set}`, label: set, color: SET_COLORS[index % SET_COLORS.length] ?? '--text', points: true, dash: [2, 3] });
  const withSets = (line: Line): Line[] => (line.name.startsWith('eval_') ? [line, ...sets.map((set, index) => lineOf(line, set, index))] : [line]);
  return CHARTS.map((spec) => ({ ...spec, lines: spec.lines.flatMap(withSets) }));
}

/** Return a chart for each line, where colors distinguish runs, with those of all sets that one of the runs evaluates on. */
export function chartsByLine(configs: (Values | undefined)[]): ChartSpec[] {
  const sets = [...new Set(configs.flatMap(evaluationSets))];
  const titleOf = (spec: ChartSpec, line: Line): string => {
    if (spec.lines.length === 1) return spec.title;
    return line.name.includes('/') ? `${spec.title} (evaluation on ${line.label})` : `${spec.title} (${line.label})`;
  };
  return chartsWith(sets).flatMap((spec) => spec.lines.map((line) => ({ ...spec, title: titleOf(spec, line), lines: [line] })));
}
