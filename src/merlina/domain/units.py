"""Binary units of memory, which are used everywhere: fields named `…_mb` count MiB, and texts state MiB or GiB."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def gib(size: float) -> str:
    """Format a number of bytes, such as `1.5 GiB`."""
    return f"{size / GIB:,.1f} GiB"
