/** How often the tuned model was preferred, in words, with how sure that is. */

export interface Tally {
  wins: number;
  losses: number;
  ties: number;
  win_rate?: number | null;
  win_rate_low?: number | null;
  win_rate_high?: number | null;
}

export function winRateInWords(tally: Tally): string {
  const votes = tally.wins + tally.losses;
  if (votes + tally.ties === 0) return 'No votes yet.';
  const counts = `${tally.wins} for the tuned model, ${tally.losses} for the base, ${tally.ties} ${tally.ties === 1 ? 'tie' : 'ties'}`;
  if (tally.win_rate == null || tally.win_rate_low == null || tally.win_rate_high == null) return `${counts}.`;
  const share = (value: number): string => `${Math.round(value * 100)} %`;
  const isSure = tally.win_rate_low > 0.5 || tally.win_rate_high < 0.5;
  const verdict = isSure ? (tally.win_rate > 0.5 ? 'the tuned model is better' : 'the base is better') : 'too few votes to tell which is better';
  return `${counts}. Preferred in ${share(tally.win_rate)} of the cases, between ${share(tally.win_rate_low)} and ${share(tally.win_rate_high)}: ${verdict}.`;
}
