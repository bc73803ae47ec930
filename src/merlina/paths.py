"""Which paths a client may name: those under the allowed folders, symbolic links resolved."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from merlina.errors import ForbiddenError, NotFoundError

_SHOWN = 200


def read_small_file(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes, never waiting for a pipe or a device.

    Raises OSError for one that is larger or no regular file, too.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content


@dataclass(frozen=True)
class AllowedPaths:
    """Folders that requests may reach into (`roots`), and folders inside them that none may (`private`).

    Hidden files and folders below a root are private too: they are where keys and tokens are kept.
    """

    roots: tuple[Path, ...]
    private: tuple[Path, ...] = ()

    def resolve(self, text: str, field: str) -> Path:
        """The real path behind `text`, which the request gave as `field`; whether anything is there is not looked at.

        Raises ForbiddenError for a path that may not be reached, NotFoundError where no path can be called so.
        """
        try:
            path = Path(os.path.expanduser(text)).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise NotFoundError(f"{field} {text[:_SHOWN]!r} is no path this machine can have: {error}") from error
        if not self.holds(path):
            roots = ", ".join(map(str, self.roots))
            raise ForbiddenError(
                f"{field} {text[:_SHOWN]!r} lies outside the folders this server may use ({roots}), or is hidden or "
                "the server's own there; ALLOWED_PATHS sets them"
            )
        return path

    def holds(self, resolved: Path) -> bool:
        """Whether a resolved path may be reached."""
        if any(resolved.is_relative_to(folder) for folder in self.private):
            return False
        below = [resolved.relative_to(root).parts for root in self.roots if resolved.is_relative_to(root)]
        return any(not any(part.startswith(".") for part in parts) for parts in below)
