/** The charts of a run: which metrics each one shows, and their labels. */

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
