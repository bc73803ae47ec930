"""The chat process: holds one job's model and streams its answers."""
