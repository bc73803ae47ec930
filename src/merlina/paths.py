"""Which paths a client may name: those under the allowed folders, symbolic links resolved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from merlina.errors import ForbiddenError, NotFoundError

_SHOWN = 200


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
