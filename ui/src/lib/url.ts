/** URLs of the page, which its server may serve at the root or below a path that a proxy adds, such as `/merlina/`. */

/**
 * Return the path below which the server is reachable, derived from the URL of one of the page's scripts in `assets/`.
 * In development and in tests, scripts have other URLs and the server is at the root.
 */
export function basePathOf(script: string, isBuilt: boolean): string {
  return isBuilt ? new URL('..', script).pathname : '/';
}

const BASE = basePathOf(import.meta.url, import.meta.env.PROD);

/** Return the URL of a server path: `/runs/job_1` becomes `/merlina/runs/job_1` below `/merlina/`. */
export function urlFor(path: string, base = BASE): string {
  return base + path.replace(/^\//, '');
}

/** Return the server path of a URL's path; null if it is outside the page. */
export function pathOf(url: string, base = BASE): string | null {
  if (`${url}/` === base) return '/';
  return url.startsWith(base) ? `/${url.slice(base.length)}` : null;
}
