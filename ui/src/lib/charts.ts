/** Which figures are drawn together, and what they are called. */

export interface Line {
  name: string;
  label: string;
  color: string;
  dash?: number[];
  points?: boolean;
  /** Jumps from step to step, so that a mean tells more. */
  isNoisy?: boolean;
}

export interface ChartSpec {
  title: string;
  help: string;
  /** What is always to be seen of the figures' axis: a share is read against the whole, a size against nothing. */
  shows?: [number] | [number, number];
  lines: Line[];
}

export const CHARTS: ChartSpec[] = [
  {
    title: 'Loss',
    help: 'Falls while the model learns. Where evaluation turns up again while training falls on, it learns by heart.',
    lines: [
      { name: 'loss', label: 'training', color: '--chart-1', isNoisy: true },
      { name: 'eval_loss', label: 'evaluation', color: '--chart-2', points: true, dash: [6, 4] },
    ],
  },
  {
    title: 'Reward margin',
    help: 'By how much the chosen answer is preferred over the rejected one.',
    lines: [
      { name: 'reward_margin', label: 'training', color: '--chart-1', isNoisy: true },
      { name: 'eval_reward_margin', label: 'evaluation', color: '--chart-2', points: true, dash: [6, 4] },
    ],
  },
  {
    title: 'Accuracy',
    help: 'Share of pairs in which the chosen answer is the preferred one. One half is a coin toss.',
    shows: [0, 1],
    lines: [
      { name: 'reward_accuracy', label: 'training', color: '--chart-1', isNoisy: true },
      { name: 'eval_reward_accuracy', label: 'evaluation', color: '--chart-2', points: true, dash: [6, 4] },
    ],
  },
  {
    title: 'Log-probabilities',
    help: 'How likely the answers are, per token. The chosen one should not fall far.',
    lines: [
      { name: 'logps_chosen', label: 'chosen', color: '--chosen', isNoisy: true },
      { name: 'logps_rejected', label: 'rejected', color: '--rejected', dash: [2, 3], isNoisy: true },
    ],
  },
  { title: 'Learning rate', help: 'Of the optimizer.', lines: [{ name: 'learning_rate', label: 'learning rate', color: '--chart-1' }] },
  { title: 'Gradient norm', help: 'Before clipping. Jumps mean that a step was rough.', lines: [{ name: 'grad_norm', label: 'norm', color: '--chart-1', isNoisy: true }] },
  { title: 'Speed', help: 'Tokens per second, each prompt counted with both its answers.', shows: [0], lines: [{ name: 'tokens_per_second', label: 'tokens/s', color: '--chart-1', isNoisy: true }] },
  {
    title: 'Memory',
    help: 'What the run holds, in GiB.',
    shows: [0],
    lines: [
      { name: 'memory_gib', label: 'RAM', color: '--chart-1' },
      { name: 'gpu_memory', label: 'GPU', color: '--chart-2', dash: [6, 4] },
    ],
  },
];
