/** Where the visitor is, whether the server answers, and whether it knows them. */

import { api, listen } from '../api/client';
import { addressOf, pathOf } from '../lib/address';
import { routeOf, type Route } from '../lib/route';

const ASK_AGAIN_AFTER = 2000;

const here = (): Route => routeOf(pathOf(location.pathname) ?? location.pathname, location.search);

class Page {
  #timer = 0;
  route = $state<Route>(here());
  isReachable = $state(true);
  needsLogin = $state(false);
  canLogOut = $state(false);
  isReady = $state(false);
  said = $state('');

  /** Shows the view of a path of the server, such as `/runs/job_1`. */
  go(path: string, replace = false): void {
    if (replace) history.replaceState(null, '', addressOf(path));
    else history.pushState(null, '', addressOf(path));
    this.#follow();
    scrollTo(0, 0);
    this.focusContent();
  }

  /** Where what had the focus is gone, those who read with a screen reader or walk by keyboard go on at the content. */
  focusContent(): void {
    document.getElementById('main')?.focus({ preventScroll: true });
  }

  /** Tells what was done to those who don't see it. */
  say(what: string): void {
    this.said = what;
  }

  #follow = (): void => {
    this.route = here();
  };

  /** Links within the page are followed without loading it anew. */
  watchLinks(): void {
    addEventListener('popstate', this.#follow);
    document.addEventListener('click', (event) => {
      if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
      const link = (event.target as Element).closest('a');
      if (!link || link.target || link.hasAttribute('download') || link.origin !== location.origin || link.hash) return;
      const path = pathOf(link.pathname);
      if (path === null || routeOf(path).view === 'nowhere') return;
      event.preventDefault();
      this.go(path + link.search);
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

  /** Hears of every question whether it could be asked, and where it couldn't, asks until one can. */
  listenToApi(): void {
    listen({
      onLoginRequired: () => (this.needsLogin = true),
      onReached: (isReachable) => {
        if (isReachable) clearTimeout(this.#timer);
        else this.#askAgain();
        this.isReachable = isReachable;
      },
    });
  }

  #askAgain(): void {
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => void this.checkSession(), ASK_AGAIN_AFTER);
  }
}

export const page = new Page();
