"""Timestamps as the API states them."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(epoch_seconds: float, timespec: str = "seconds") -> str:
    """Return a time as ISO 8601 in UTC, such as `2025-01-16T14:30:22+00:00`."""
    return datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec=timespec)
