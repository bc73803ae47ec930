/** The color theme: that of the system until the user selects one. */

const KEY = 'merlina-theme';
type Name = 'dark' | 'light';

const system = matchMedia('(prefers-color-scheme: dark)');

class Theme {
  name = $state<Name>(current());

  constructor() {
    system.addEventListener('change', () => {
      this.name = current();
    });
  }

  toggle(): void {
    this.name = this.name === 'dark' ? 'light' : 'dark';
    document.documentElement.dataset.theme = this.name;
    localStorage.setItem(KEY, this.name);
  }
}

function current(): Name {
  const chosen = document.documentElement.dataset.theme as Name | undefined;
  return chosen ?? (system.matches ? 'dark' : 'light');
}

export const theme = new Theme();
