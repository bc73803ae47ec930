"""The server's folders and its lock, created and checked at startup."""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merlina.errors import ServerError, is_disk_full
from merlina.settings import Settings


@contextmanager
def sole_server(lock_file: Path) -> Iterator[None]:
    """Hold the data folder's lock, so that two servers never use the same jobs. Raises ServerError."""
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _refusal("DATA_DIR", Path(error.filename or lock_file), error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ServerError(f"Another Merlina server uses {lock_file.parent}; stop it or set another DATA_DIR") from error
    except OSError as error:
        os.close(lock)
        raise _refusal("DATA_DIR", lock_file, error) from error
    try:
        yield
    finally:
        os.close(lock)


def make_folders(settings: Settings) -> None:
    """Create missing folders and check that all are usable. Raises ServerError."""
    for folder in (settings.data_dir, settings.runs_dir, settings.uploads_dir, settings.configs_dir):
        _make("DATA_DIR", folder, 0o700)
    _make("MODELS_DIR", settings.models_dir, 0o755)
    for log in (settings.helper_log, settings.chat_log):
        with _refusing("DATA_DIR", log):
            log.open("ab").close()


def _make(setting: str, folder: Path, mode: int) -> None:
    with _refusing(setting, folder):
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        os.scandir(folder).close()
        # Permissions alone do not determine on every file system whether files can be created.
        probe = folder / f".merlina-{os.getpid()}"
        probe.touch()
        probe.unlink()


@contextmanager
def _refusing(setting: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The server starts on a full disk, so that users can view jobs and free space by deleting some.
        if not is_disk_full(error):
            raise _refusal(setting, path, error) from error


def _refusal(setting: str, path: Path, error: OSError) -> ServerError:
    return ServerError(f"{setting}: {path} cannot be used: {error.strerror or error}{_owner_note(path)}")


def _owner_note(path: Path) -> str:
    """Return a note on the owner of the path if it is another user."""
    try:
        owner = path.stat().st_uid
    except OSError:
        return ""
    return (
        "" if owner == os.geteuid() else f"; its owner is {_name(owner)}, but the server runs as {_name(os.geteuid())}"
    )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
