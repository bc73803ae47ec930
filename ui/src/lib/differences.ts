/** Settings in which several configurations differ; – stands for null and for a setting that a configuration lacks. */

export interface Difference {
  name: string;
  values: string[];
}

export function differences(configs: Record<string, unknown>[]): Difference[] {
  const flat = configs.map((config) => flatten(config));
  const names = [...new Set(flat.flatMap((config) => [...config.keys()]))];
  return names
    .map((name) => ({ name, values: flat.map((config) => config.get(name) ?? '–') }))
    .filter(({ values }) => new Set(values).size > 1);
}

function flatten(value: unknown, prefix = ''): Map<string, string> {
  const flat = new Map<string, string>();
  for (const [name, inner] of Object.entries(value as Record<string, unknown>)) {
    const path = prefix ? `${prefix}.${name}` : name;
    if (hasFields(inner)) for (const [key, text] of flatten(inner, path)) flat.set(key, text);
    else if (inner !== null) flat.set(path, typeof inner === 'string' ? inner : JSON.stringify(inner));
  }
  return flat;
}

/** Return whether a value is an object or a list of objects. */
function hasFields(value: unknown): boolean {
  return Array.isArray(value) ? value.some(hasFields) : value !== null && typeof value === 'object';
}
