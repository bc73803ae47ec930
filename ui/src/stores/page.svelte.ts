/** Where the visitor is, whether the server answers, and whether it knows them. */

import { api, ApiError, whenLoginIsRequired } from '../api/client';
import { routeOf, type Route } from '../lib/route';

class Page {
  route = $state<Route>(routeOf(location.pathname, location.search));
  isReachable = $state(true);
  needsLogin = $state(false);
  canLogOut = $state(false);
  isReady = $state(false);

  go(address: string, replace = false): void {
    if (replace) history.replaceState(null, '', address);
    else history.pushState(null, '', address);
    this.#follow();
    scrollTo(0, 0);
    // The link that led here is gone; who reads with a screen reader or walks by keyboard begins at the content.
    document.getElementById('main')?.focus({ preventScroll: true });
  }

  #follow = (): void => {
    this.route = routeOf(location.pathname, location.search);
  };

  /** Links within the page are followed without loading it anew. */
  watchLinks(): void {
    addEventListener('popstate', this.#follow);
    document.addEventListener('click', (event) => {
      if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
      const link = (event.target as Element).closest('a');
      if (!link || link.target || link.hasAttribute('download') || link.origin !== location.origin || link.hash) return;
      if (routeOf(link.pathname).view === 'nowhere') return;
      event.preventDefault();
      this.go(link.pathname + link.search);
    });
  }

  async checkSession(): Promise<void> {
    whenLoginIsRequired(() => {
      this.needsLogin = true;
    });
    try {
      const session = await api.session();
      this.needsLogin = session.login_required && !session.logged_in;
      this.canLogOut = session.login_required && session.logged_in;
      this.isReachable = true;
    } catch (error) {
      this.isReachable = !(error instanceof ApiError && error.status === 0);
    }
    this.isReady = true;
  }

  /** Notes whether a question could be asked at all. */
  heard(error?: unknown): void {
    this.isReachable = !(error instanceof ApiError && (error.status === 0 || error.status >= 502));
  }
}

export const page = new Page();
