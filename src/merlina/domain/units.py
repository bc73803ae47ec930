"""Binary units of memory, which are used everywhere: MiB in fields named `…_mb`, GiB in texts."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def gib(size: float) -> str:
    """Format a number of bytes, such as `1.5 GiB`."""
    return f"{size / GIB:,.1f} GiB"
