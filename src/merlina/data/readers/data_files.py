"""A file with rows, on this machine or at an address; both have `name` and `open("rb")`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import overload

from merlina.data.readers.remote_files import RemoteContent
from merlina.domain.data_urls import FileLocation, RemoteFile

DataFile = Path | RemoteContent


@overload
def file_at(location: FileLocation, while_waiting: Callable[[], None] | None = None) -> DataFile: ...
@overload
def file_at(location: FileLocation | None, while_waiting: Callable[[], None] | None = None) -> DataFile | None: ...
def file_at(location: FileLocation | None, while_waiting: Callable[[], None] | None = None) -> DataFile | None:
    """Return the file to read; None for the Hub. Raises DataError for an address that is not allowed.

    `while_waiting` is called twice a second while the server of an address is awaited, and raises to give up.
    """
    return RemoteContent(location, while_waiting) if isinstance(location, RemoteFile) else location


def size_of(file: DataFile) -> int:
    """Return the size in bytes. Raises OSError, and DataError for a file at an address."""
    return file.size if isinstance(file, RemoteContent) else file.stat().st_size
