/** The sources of a data set that can be previewed. */

import { alone, type DataDraft } from './draft';
import { nameOf, type SourceDraft } from './sources';

export interface PreviewPart {
  id: string;
  label: string;
  data: DataDraft;
}

/** Return the sources that are selected, each as a data set of its own. `files` has the names of uploaded files by id. */
export function previewParts(data: DataDraft, files: Map<string, string>): PreviewPart[] {
  const part = (id: string, title: string, one: SourceDraft): PreviewPart[] => {
    if (one.source === null) return [];
    return [{ id, label: [title, nameOf(one.source, files)].filter(Boolean).join(': ').slice(0, 80), data: alone(data, one) }];
  };
  return [
    ...data.sources.flatMap((one, index) => part(`source-${one.key}`, `Source ${index + 1}`, one)),
    ...data.evaluationSets.flatMap((one) => part(`evaluation-${one.key}`, `Evaluation set ${one.name}`.trim(), one)),
  ];
}
