"""Where jobs run: one process per job, by a protocol another engine can take over."""
