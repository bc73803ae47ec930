"""Memory is stated in binary units everywhere: MiB in fields whose names end in `_mb`, GiB in words and figures."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def gib(size: float) -> str:
    """Return a number of bytes in words, such as `1.5 GiB`."""
    return f"{size / GIB:,.1f} GiB"
