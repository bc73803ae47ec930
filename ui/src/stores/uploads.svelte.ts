/** The uploaded files, newest first. */

import { api } from '../api/client';

export class Uploads {
  items = $state.raw<Awaited<ReturnType<typeof api.uploads>>['datasets']>([]);
  /** Names of the files by id. */
  files = $derived(new Map(this.items.map((each) => [each.dataset_id, each.filename])));

  constructor() {
    void this.load();
  }

  async load(): Promise<void> {
    this.items = (await api.uploads().catch(() => ({ datasets: [] }))).datasets;
  }
}
