"""Access to paths and addresses that clients name: only below the allowed ones, with symbolic links resolved."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from merlina.domain.data_urls import AllowedUrls, DataUrl, RemoteFile
from merlina.errors import ForbiddenError, NotFoundError

_SHOWN = 200


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes` bytes, without waiting for a pipe or a device.

    Raises OSError, also for a larger file or another kind of file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", str(path))
    return content


@dataclass(frozen=True)
class AllowedPaths:
    """Folders that requests may access (`roots`), and folders inside them that they may not (`private`).

    Hidden files and folders below a root are private as well, because they often contain keys and tokens. `urls` are
    the addresses outside this machine that requests may access.
    """

    roots: tuple[Path, ...]
    private: tuple[Path, ...] = ()
    urls: AllowedUrls = field(default_factory=AllowedUrls)

    def resolve(self, text: str, field: str) -> Path:
        """Return the resolved path of `text`, the value of the request's `field`. The path need not exist.

        Raises ForbiddenError for a path outside the allowed folders, and NotFoundError for an invalid path.
        """
        try:
            path = Path(os.path.expanduser(text)).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise NotFoundError(f"{field} {text[:_SHOWN]!r} is not a valid path: {error}") from error
        if not self.is_allowed(path):
            roots = ", ".join(map(str, self.roots))
            raise ForbiddenError(
                f"{field} {text[:_SHOWN]!r} is outside the folders that this server may use ({roots}), hidden, or "
                "reserved for the server; ALLOWED_PATHS sets the folders"
            )
        return path

    def remote_file(self, url: str) -> RemoteFile:
        """Return the file at an address. Raises ForbiddenError for an address that is not allowed."""
        if refusal := self.urls.refusal(DataUrl.parse(url)):
            raise ForbiddenError(f"url {refusal}")
        return RemoteFile(url, self.urls.entries)

    def is_allowed(self, resolved: Path) -> bool:
        """Return whether requests may access a resolved path."""
        if any(resolved.is_relative_to(folder) for folder in self.private):
            return False
        below = [resolved.relative_to(root).parts for root in self.roots if resolved.is_relative_to(root)]
        return any(not any(part.startswith(".") for part in parts) for parts in below)
