"""The files of a run folder, and the process that writes each.

DATA_DIR/runs/<job_id>/            0700
    job.json         server        the mark of a run folder, from which its job can be restored
    pending          server        exists until the job is in the database
    deleted          server        exists from the deletion of the job to the deletion of its files
    order.json       server        the order: configuration without tokens, resolved paths
    secrets.json     server, 0600  the run's tokens, which are stored nowhere else
    lock             worker        held (flock) while a worker lives; contains its ProcessId
    events.jsonl     worker        the numbered event log (see merlina.schemas.events)
    reserve          worker        disk space for the last event, released when the disk is full
    rendezvous       worker        rendezvous of the ranks of a run on several GPUs
    worker.log       worker        standard output and error
    stop             server        exists once a stop was requested
    pause            server        exists once a pause was requested; contains the reason
    data.json        worker        the fingerprint of the rows and the split used for training
    start_over       server        exists if the next attempt is to ignore all checkpoints; removed by the worker
    checkpoints/     worker        checkpoint-<step>/, each with a manifest once complete (see merlina.checkpoints)
    tokens/          worker        the token cache: token ids of a large data set, mapped into memory
    converted/       worker        weights of the base model in another format, if the run had to convert them
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merlina.errors import StoredConfigError
from merlina.private_files import write_private
from merlina.processes import ProcessId
from merlina.run_folder.order import RunOrder
from merlina.schemas.parsing.stored_config import read_stored_config

_RESERVE_BYTES = 64 * 1024
# Files of earlier versions, which are ours as well: the rendezvous of the ranks.
_EARLIER_NAMES = ("meeting",)
# The exit code of a worker that ended itself because its run folder, lock or event log was gone.
DETACHED_EXIT_CODE = 76


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run."""

    path: Path

    @property
    def mark_file(self) -> Path:
        return self.path / "job.json"

    @property
    def pending_file(self) -> Path:
        return self.path / "pending"

    @property
    def deleted_file(self) -> Path:
        return self.path / "deleted"

    @property
    def order_file(self) -> Path:
        return self.path / "order.json"

    @property
    def secrets_file(self) -> Path:
        return self.path / "secrets.json"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "worker.log"

    @property
    def stop_file(self) -> Path:
        return self.path / "stop"

    @property
    def pause_file(self) -> Path:
        return self.path / "pause"

    @property
    def start_over_file(self) -> Path:
        return self.path / "start_over"

    @property
    def fingerprint_file(self) -> Path:
        return self.path / "data.json"

    @property
    def reserve_file(self) -> Path:
        return self.path / "reserve"

    @property
    def rendezvous_file(self) -> Path:
        return self.path / "rendezvous"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokens_dir(self) -> Path:
        """The token cache, which is mapped into memory and used again by a resume."""
        return self.path / "tokens"

    @property
    def converted_dir(self) -> Path:
        """Converted weights of the base model, if the worker had to convert them."""
        return self.path / "converted"

    @property
    def own_paths(self) -> frozenset[Path]:
        """All paths that a run writes: those of the properties `…_file` and `…_dir`, and those of earlier versions."""
        names = [name for name in vars(RunFolder) if name.endswith(("_file", "_dir"))]
        return frozenset([*(getattr(self, name) for name in names), *map(self.path.joinpath, _EARLIER_NAMES)])

    def is_unfinished(self, path: Path) -> bool:
        """Return whether `path` is a temporary file that `write_private` left when its process was killed."""
        name, _, process = path.name.removeprefix(".").rpartition(".")
        return path.name.startswith(".") and process.isdigit() and path.with_name(name) in self.own_paths

    def reserve(self) -> None:
        """Reserve disk space for the last event."""
        self.reserve_file.write_bytes(bytes(_RESERVE_BYTES))

    def write_order(self, order: RunOrder) -> None:
        write_private(self.order_file, order.model_dump_json(indent=2).encode())

    def read_order(self) -> RunOrder:
        """Read the order. Raises OSError, or StoredConfigError if this version cannot read it."""
        try:
            content = json.loads(self.order_file.read_bytes())
            # The name in earlier versions.
            if "processes" in content:
                content["num_ranks"] = content.pop("processes")
            return RunOrder.model_validate({**content, "config": read_stored_config(content["config"], self.path.name)})
        except (ValueError, TypeError, KeyError) as error:
            raise StoredConfigError(
                f"{self.order_file} is not a run order that this version of Merlina can read"
            ) from error

    def after_seq(self) -> int:
        """Return the number of the last event before this attempt, even if the rest of the order is unreadable."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            return int(json.loads(self.order_file.read_bytes())["after_seq"])
        return 0

    def write_secrets(self, secrets: dict[str, str]) -> None:
        if secrets:
            write_private(self.secrets_file, json.dumps(secrets).encode())

    def read_secrets(self) -> dict[str, str]:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads(self.secrets_file.read_bytes()))
        return {}

    def clear_requests(self) -> None:
        """Remove the stop and pause requests of an earlier attempt."""
        self.stop_file.unlink(missing_ok=True)
        self.pause_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int | None]:
        """Take the lock; yield its file descriptor, or None if a living worker holds it."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Return whether a process holds the lock. A missing folder or file is not created."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def worker(self) -> ProcessId | None:
        """Return the identity of the process named in the lock file, alive or not."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return ProcessId.parse(self.lock_file.read_text())
        return None


def remove_token_cache(folder: RunFolder) -> None:
    """Remove the token cache. What a crash leaves of it is not used again."""
    shutil.rmtree(folder.tokens_dir, ignore_errors=True)
