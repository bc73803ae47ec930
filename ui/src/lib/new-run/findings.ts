/** Findings of a validation, assigned to the settings that they concern. */

import type { Finding } from '../../api/client';
import { capitalized } from '../format';
import { FIELDS, labelOf } from './fields';

/** Return the setting that a finding concerns, or `dataset`; null if the form has no field for it. */
export function settingOf(finding: Finding): string | null {
  const name = finding.field?.split('.')[0] ?? '';
  return name === 'dataset' || FIELDS.has(name) ? name : null;
}

export const errorsIn = (findings: Finding[]): Finding[] => findings.filter((each) => each.severity !== 'warning');
export const warningsIn = (findings: Finding[]): Finding[] => findings.filter((each) => each.severity === 'warning');

/** Return the text of a finding that is shown apart from its field. */
export function describe(finding: Finding): string {
  return finding.field ? `${finding.field}: ${finding.message}` : capitalized(finding.message);
}

const OWN_SETTINGS = ['weight', 'max_samples'];

/** Return messages of findings by the longest of the places that their fields are in; '' has those that are in none. */
export function messagesByPlace(findings: Finding[], places: string[]): Map<string, string[]> {
  const messages = new Map<string, string[]>();
  for (const { field, message } of findings) {
    const found = places.filter((each) => field === each || field?.startsWith(`${each}.`)).sort((one, other) => other.length - one.length)[0];
    const setting = found === undefined ? '' : (field ?? '').slice(found.length + 1);
    const text = OWN_SETTINGS.includes(setting) ? `${labelOf(setting)} ${message}` : capitalized(message);
    messages.set(found ?? '', [...(messages.get(found ?? '') ?? []), text]);
  }
  return messages;
}

/** Return the text of a finding with the name of the source that it concerns, if it is one of several. */
export function describeOfSource(finding: Finding): string {
  const [, index, name] = /^dataset\.(?:sources\.(\d+)|eval_sources\.(.+))/.exec(finding.field ?? '') ?? [];
  if (index !== undefined) return `Source ${Number(index) + 1}: ${finding.message}`;
  return name === undefined ? capitalized(finding.message) : `Evaluation set ${name}: ${finding.message}`;
}
