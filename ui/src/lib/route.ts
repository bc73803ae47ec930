/** The view of a path. */

export type Route =
  | { view: 'runs' }
  | { view: 'new'; from: string | null }
  | { view: 'run'; job: string }
  | { view: 'chat'; job: string }
  | { view: 'compare'; jobs: string[] }
  | { view: 'machine' }
  | { view: 'not-found' };

export function routeOf(path: string, search = ''): Route {
  const query = new URLSearchParams(search);
  const [first, second, third] = path.split('/').filter(Boolean).map(decoded);
  if (first === 'runs' && second !== undefined && third === 'chat') return { view: 'chat', job: second };
  if (third !== undefined) return { view: 'not-found' };
  if (first === undefined || (first === 'runs' && second === undefined)) return { view: 'runs' };
  if (first === 'runs' && second !== undefined) return { view: 'run', job: second };
  if (second !== undefined) return { view: 'not-found' };
  if (first === 'new') return { view: 'new', from: query.get('from') };
  if (first === 'compare') return { view: 'compare', jobs: (query.get('runs') ?? '').split(',').filter(Boolean) };
  if (first === 'machine') return { view: 'machine' };
  return { view: 'not-found' };
}

/** Return the decoded part, or the part itself if it is not valid percent-encoding. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
