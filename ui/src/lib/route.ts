/** Which view an address stands for. */

export type Route =
  | { view: 'runs' }
  | { view: 'new'; from: string | null }
  | { view: 'run'; job: string }
  | { view: 'chat'; job: string }
  | { view: 'compare'; jobs: string[] }
  | { view: 'machine' }
  | { view: 'nowhere' };

export function routeOf(path: string, search = ''): Route {
  const query = new URLSearchParams(search);
  const [first, second, third] = path.split('/').filter(Boolean).map(decoded);
  if (first === 'runs' && second !== undefined && third === 'chat') return { view: 'chat', job: second };
  if (third !== undefined) return { view: 'nowhere' };
  if (first === undefined || (first === 'runs' && second === undefined)) return { view: 'runs' };
  if (first === 'runs' && second !== undefined) return { view: 'run', job: second };
  if (second !== undefined) return { view: 'nowhere' };
  if (first === 'new') return { view: 'new', from: query.get('from') };
  if (first === 'compare') return { view: 'compare', jobs: (query.get('runs') ?? '').split(',').filter(Boolean) };
  if (first === 'machine') return { view: 'machine' };
  return { view: 'nowhere' };
}

/** As it stands where it is no text in the way of addresses. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
