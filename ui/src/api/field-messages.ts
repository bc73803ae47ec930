/**
 * Messages of the API, by the setting that they concern. The API's contract has errors and warnings as texts that start
 * with the path of a field, "dataset.source: …", if they concern one. This is the only place that parses them.
 */

export interface FieldMessage {
  /** Name of a setting, or `dataset`; null if the message does not concern one field. */
  field: string | null;
  text: string;
}

export function fieldMessages(messages: string[], settings: Iterable<string>): FieldMessage[] {
  const names = new Set([...settings, 'dataset']);
  return messages.map((message) => {
    const [, field = '', text = ''] = /^(\w+)[\w.]*: *(.*)$/s.exec(message) ?? [];
    return names.has(field) ? { field, text } : { field: null, text: message };
  });
}
