/** Description of a win rate and its confidence interval. */

export interface Tally {
  wins: number;
  losses: number;
  ties: number;
  win_rate?: number | null;
  win_rate_low?: number | null;
  win_rate_high?: number | null;
}

export function describeWinRate(tally: Tally): string {
  const votes = tally.wins + tally.losses;
  if (votes + tally.ties === 0) return 'No votes yet.';
  const counts = `${tally.wins} for the fine-tuned model, ${tally.losses} for the base model, ${tally.ties} ${tally.ties === 1 ? 'tie' : 'ties'}`;
  if (tally.win_rate == null || tally.win_rate_low == null || tally.win_rate_high == null) return `${counts}.`;
  const inPercent = (value: number): string => `${Math.round(value * 100)}%`;
  const isSignificant = tally.win_rate_low > 0.5 || tally.win_rate_high < 0.5;
  const better = tally.win_rate > 0.5 ? 'The fine-tuned model is better.' : 'The base model is better.';
  const verdict = isSignificant ? better : 'More votes are needed to determine which model is better.';
  return `${counts}. Win rate ${inPercent(tally.win_rate)} (95% confidence interval ${inPercent(tally.win_rate_low)} to ${inPercent(tally.win_rate_high)}). ${verdict}`;
}
