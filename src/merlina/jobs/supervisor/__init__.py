"""The server's thread that ingests events, detects dead workers, enforces requests and starts jobs."""
