"""One process a run: load, train, save, publish. Its run folder is its only link to the outside."""
