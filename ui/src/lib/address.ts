/** Where the page lives on its server: at the root, or below a path that a proxy adds, such as `/merlina/`. */

/**
 * The path below which the server answers, from the address of one of the page's scripts, which lie in `assets/`.
 * While the page is developed and tested, its scripts are elsewhere and the server answers at the root.
 */
export function baseOf(script: string, isBuilt: boolean): string {
  return isBuilt ? new URL('..', script).pathname : '/';
}

const BASE = baseOf(import.meta.url, import.meta.env.PROD);

/** The address of a path of the server: `/runs/job_1` becomes `/merlina/runs/job_1` below `/merlina/`. */
export function addressOf(path: string, base = BASE): string {
  return base + path.replace(/^\//, '');
}

/** The path of the server that an address stands for; null if it lies outside the page. */
export function pathOf(address: string, base = BASE): string | null {
  if (`${address}/` === base) return '/';
  return address.startsWith(base) ? `/${address.slice(base.length)}` : null;
}
