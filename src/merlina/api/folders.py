"""The server's folders and its lock: made or refused at startup, with one sentence for what is wrong."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merlina.errors import ServerError
from merlina.settings import Settings


@contextmanager
def sole_server(lock_file: Path) -> Iterator[None]:
    """Hold the data folder's lock, so that two servers never move the same jobs. Raises ServerError."""
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _refusal("DATA_DIR", Path(error.filename or lock_file), error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ServerError(
            f"Another Merlina server uses {lock_file.parent}; stop it or take another DATA_DIR"
        ) from error
    except OSError as error:
        os.close(lock)
        raise _refusal("DATA_DIR", lock_file, error) from error
    try:
        yield
    finally:
        os.close(lock)


def make_folders(settings: Settings) -> None:
    """Make the folders that are missing, and check that all can be used. Raises ServerError."""
    own = [settings.data_dir, settings.runs_dir, settings.uploads_dir, settings.configs_dir]
    for folder in own:
        _make("DATA_DIR", folder, 0o700)
    _make("MODELS_DIR", settings.models_dir, 0o755)
    for log in (settings.helper_log, settings.chat_log):
        with _refusing("DATA_DIR", log):
            log.open("ab").close()


def _make(setting: str, folder: Path, mode: int) -> None:
    with _refusing(setting, folder):
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        os.scandir(folder).close()
        # Only an attempt shows on every kind of file system whether files can be made here.
        probe = folder / f".merlina-{os.getpid()}"
        probe.touch()
        probe.unlink()


@contextmanager
def _refusing(setting: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # A full disk does not keep the server from starting: jobs can be looked at, and room can be made by deleting.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise _refusal(setting, path, error) from error


def _refusal(setting: str, path: Path, error: OSError) -> ServerError:
    return ServerError(f"{setting}: {path} can't be used: {error.strerror or error}{_owner(path)}")


def _owner(path: Path) -> str:
    """Return whose it is, where that is somebody else."""
    try:
        owner = path.stat().st_uid
    except OSError:
        return ""
    return (
        "" if owner == os.geteuid() else f"; it belongs to {_name(owner)}, and the server runs as {_name(os.geteuid())}"
    )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
