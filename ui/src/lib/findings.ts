/** Findings of a validation, assigned to the settings that they concern. */

import type { Finding } from '../api/client';
import { capitalized } from './format';
import { FIELDS } from './fields';

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
