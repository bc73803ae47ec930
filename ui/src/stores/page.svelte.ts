/** The current route, whether the server is reachable, and whether the user is logged in. */

import { api, listen } from '../api/client';
import { pathOf, urlFor } from '../lib/url';
import { routeOf, type Route } from '../lib/route';

const RETRY_MS = 2000;

const currentRoute = (): Route => routeOf(pathOf(location.pathname) ?? location.pathname, location.search);

class Page {
  #retryTimer = 0;
  route = $state<Route>(currentRoute());
  isReachable = $state(true);
  needsLogin = $state(false);
  canLogOut = $state(false);
  isReady = $state(false);
  announcement = $state('');

  /** Show the view of a server path, such as `/runs/job_1`. */
  navigate(path: string, replace = false): void {
    if (replace) history.replaceState(null, '', urlFor(path));
    else history.pushState(null, '', urlFor(path));
    this.#updateRoute();
    scrollTo(0, 0);
    this.focusContent();
  }

  /** Move the focus to the content after the focused element was removed, for keyboard and screen reader users. */
  focusContent(): void {
    document.getElementById('main')?.focus({ preventScroll: true });
  }

  /** Announce the result of an action to screen readers. */
  announce(text: string): void {
    this.announcement = text;
  }

  #updateRoute = (): void => {
    this.route = currentRoute();
  };

  /** Follow links within the page without reloading it. */
  interceptLinks(): void {
    addEventListener('popstate', this.#updateRoute);
    document.addEventListener('click', (event) => {
      if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
      const link = (event.target as Element).closest('a');
      if (!link || link.target || link.hasAttribute('download') || link.origin !== location.origin || link.hash) return;
      const path = pathOf(link.pathname);
      if (path === null || routeOf(path).view === 'not-found') return;
      event.preventDefault();
      this.navigate(path + link.search);
    });
  }

  async checkSession(): Promise<void> {
    const session = await api.session().catch(() => null);
    if (session) {
      this.needsLogin = session.login_required && !session.logged_in;
      this.canLogOut = session.login_required && session.logged_in;
    }
    this.isReady = true;
  }

  /** Track whether requests reach the server, and retry until one does. */
  watchServer(): void {
    listen({
      onLoginRequired: () => (this.needsLogin = true),
      onReachable: (isReachable) => {
        clearTimeout(this.#retryTimer);
        if (!isReachable) this.#retryTimer = window.setTimeout(() => void this.checkSession(), RETRY_MS);
        this.isReachable = isReachable;
      },
    });
  }
}

export const page = new Page();
