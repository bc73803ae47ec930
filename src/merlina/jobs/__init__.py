"""The life of jobs: commands, state changes, scheduling, ingestion of events, and their distribution to subscribers."""
