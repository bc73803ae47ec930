"""The run folder: its files, the process that writes each, and reading and writing of the event log.

DATA_DIR/runs/<job_id>/            0700
    job.json         server        the mark of a run folder, from which its job can be restored
    pending          server        exists until the job is in the database
    deleted          server        exists from the deletion of the job to the deletion of its files
    order.json       server        the order: configuration without tokens, resolved paths
    secrets.json     server, 0600  the run's tokens, which are stored nowhere else
    lock             worker        held (flock) while a worker lives; contains its ProcessId
    events.jsonl     worker        the numbered event log (see merlina.schemas.events)
    reserve          worker        disk space for the last event, released when the disk is full
    meeting          worker        rendezvous of the ranks of a run on several GPUs
    worker.log       worker        standard output and error
    stop             server        exists once a stop was requested
    pause            server        exists once a pause was requested; contains the reason
    data.json        worker        the fingerprint of the rows and the split used for training
    start_over       server        exists if the next attempt is to ignore all checkpoints; removed by the worker
    checkpoints/     worker        checkpoint-<step>/, each with a manifest once complete (see merlina.checkpoints)
    converted/       worker        weights of the base model in another format, if the run had to convert them
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from merlina.errors import StoredConfigError
from merlina.processes import ProcessId
from merlina.schemas.events import BaseEvent, Event, KnownEvent, parse_event
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.schemas.training import TrainingConfig


class RunOrder(BaseModel):
    """The specification of one attempt, without tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    attempt: int
    resume: bool = False
    # The step from which this attempt continues, as the server announced it; 0: from the beginning.
    resume_step: int = Field(0, ge=0)
    config: TrainingConfig
    dataset_file: str | None = None
    # The files of further sources, by their field in `dataset`, such as `sources.1` or `eval_sources.news`.
    source_files: dict[str, str] = {}
    # The addresses that data may be read from, by the setting ALLOWED_DATA_URLS.
    allowed_data_urls: tuple[str, ...] = ()
    output_dir: str
    trust_remote_code: bool = False
    # The number of the last event before this attempt, including the server's own transitions.
    after_seq: int = Field(0, ge=0)
    max_row_mb: int = 16
    # The GPUs assigned to the run; None on a machine without GPUs.
    gpus: list[int] | None = None
    # The number of ranks: one per GPU, or one without a GPU.
    num_ranks: int = Field(default=1, ge=1)
    # The estimate of the peak memory per GPU that was reported before the run, in MiB. Passes stay within it, unless
    # not even one with a single pair fits.
    memory_limit_mb: int | None = None


_log = logging.getLogger(__name__)
_E = TypeVar("_E", bound=BaseEvent)
_RESERVE_BYTES = 64 * 1024
_SILENCE_SECONDS = 2.0
_BLOCK = 1 << 20
# No event is longer than this.
MAX_LINE_BYTES = 1 << 20
# The exit code of a worker that ended itself because its run folder, lock or event log was gone.
DETACHED_EXIT_CODE = 76
# Characters of a string in an event. However they are escaped, the line stays below the limit.
_MAX_TEXT = 100_000
# A larger gap in the numbering means damage rather than lost lines.
_MAX_GAP = 1_000_000


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
        return self.path / "meeting"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokens_dir(self) -> Path:
        """The token ids of a large data set, which are mapped into memory and used again by a resume."""
        return self.path / "tokens"

    @property
    def converted_dir(self) -> Path:
        """Converted weights of the base model, if the worker had to convert them."""
        return self.path / "converted"

    @property
    def own_paths(self) -> frozenset[Path]:
        """All paths that a run writes: those of the properties `…_file` and `…_dir` of this class."""
        names = [name for name in vars(RunFolder) if name.endswith(("_file", "_dir"))]
        return frozenset(getattr(self, name) for name in names)

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


def remove_token_ids(folder: RunFolder) -> None:
    """Remove the token ids of a large data set. What a crash leaves of them is not used again."""
    shutil.rmtree(folder.tokens_dir, ignore_errors=True)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file atomically; only its owner can read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@dataclass(frozen=True)
class LogBlock:
    """A part of an event log: its events, the offset after it, and the number of lines that were not events."""

    events: list[Event]
    offset: int
    skipped: int = 0


def read_block(path: Path, offset: int = 0, limit_bytes: int = _BLOCK) -> LogBlock:
    """Read complete lines from byte `offset`, about `limit_bytes` of them.

    A line that is still being written (without a newline) is left for the next call. Lines longer than any event are
    skipped in parts, so that no line can occupy more than MAX_LINE_BYTES of memory.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, offset - 1))
            is_line_start = offset == 0 or file.read(1) == b"\n"
            chunk = file.read(limit_bytes)
            if chunk and b"\n" not in chunk:
                chunk += file.readline(max(0, MAX_LINE_BYTES - len(chunk)))
    except FileNotFoundError:
        return LogBlock([], offset)
    end = chunk.rfind(b"\n") + 1
    if not end and len(chunk) >= MAX_LINE_BYTES:
        return LogBlock([], offset + len(chunk), int(is_line_start))
    begin = 0 if is_line_start else chunk.find(b"\n") + 1
    parsed = [parse_event(line) for line in chunk[begin:end].split(b"\n") if line.strip()]
    return LogBlock([event for event in parsed if event is not None], offset + end, parsed.count(None))


def read_events(path: Path, offset: int = 0, limit_bytes: int = _BLOCK) -> tuple[list[Event], int]:
    """Return the events of the next block that has any, and the offset after it; no events at the end of the log."""
    while True:
        block = read_block(path, offset, limit_bytes)
        if block.events or block.offset == offset:
            return block.events, block.offset
        offset = block.offset


def in_order(events: Sequence[Event], after: int) -> list[Event]:
    """Return the events with increasing numbers above `after`.

    Left out are repeated and smaller numbers, and a number that skips ahead of events that follow.
    """
    kept: list[Event] = []
    last = after
    for index, event in enumerate(events):
        jumps = event.seq > last + 1
        if event.seq <= last or event.seq > last + _MAX_GAP:
            continue
        if jumps and any(last < later.seq < event.seq for later in events[index + 1 :]):
            continue
        kept.append(event)
        last = event.seq
    return kept


def find_events(path: Path, *kinds: type[_E]) -> Iterator[_E]:
    """Yield the log's events of some types, in order, without parsing the lines of other types, which are most."""
    names = "|".join(name for kind in kinds for name in get_args(kind.model_fields["type"].annotation))
    # Quotes are escaped inside strings, so the pattern matches nowhere else.
    pattern = re.compile(f'"type":"(?:{names})"'.encode())
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        rest = b""
        while chunk := file.read(_BLOCK):
            block = rest + chunk
            whole = block.rfind(b"\n") + 1
            for found in pattern.finditer(block, 0, whole):
                begin = block.rfind(b"\n", 0, found.start()) + 1
                event = parse_event(block[begin : block.index(b"\n", found.end())])
                if isinstance(event, kinds):
                    yield event
            rest = block[whole:]
            if len(rest) > MAX_LINE_BYTES:
                rest = b""


class EventLog:
    """The writer of a run's event log. Only the process that holds the run's lock may use it."""

    def __init__(self, path: Path, after_seq: int = 0) -> None:
        """Open the log. Numbers continue after `after_seq` if it is given, otherwise after the last event in the file.

        The number is given if the server knows it, because a damaged line may look like an event with a high number.
        """
        self._path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._writing = threading.Lock()
        self._remove_torn_line()
        self.seq = after_seq or self._last_seq()

    def append(self, event: KnownEvent) -> int:
        """Write one event and return its number. A durable event is on disk by then."""
        with self._writing:
            return self._append(event)

    def block_appends(self) -> None:
        """Prevent all other threads from writing, forever: their next `append` never returns.

        A write that does not end within two seconds is not waited for.
        """
        self._writing.acquire(timeout=_SILENCE_SECONDS)

    def _append(self, event: KnownEvent) -> int:
        clipped = {name: value[:_MAX_TEXT] for name, value in event if isinstance(value, str)}
        numbered = event.model_copy(update={**clipped, "seq": self.seq + 1, "time": time.time()})
        line = numbered.model_dump_json().encode() + b"\n"
        written = os.write(self.descriptor, line)
        if written < len(line):
            os.ftruncate(self.descriptor, os.lseek(self.descriptor, -written, os.SEEK_CUR))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        if event.is_durable:
            os.fsync(self.descriptor)
        self.seq += 1
        return self.seq

    def close(self) -> None:
        os.close(self.descriptor)

    def _remove_torn_line(self) -> None:
        """Remove an incomplete last line, left by a writer that was killed."""
        end = os.lseek(self.descriptor, 0, os.SEEK_END)
        newlines = (start + block.rfind(b"\n") for start, block in self._blocks_from_end(end) if b"\n" in block)
        whole = next(newlines, -1) + 1
        if end - whole >= MAX_LINE_BYTES:
            # Not an event, and readers may have skipped a part of it, so it is terminated rather than removed.
            os.write(self.descriptor, b"\n")
        else:
            os.ftruncate(self.descriptor, whole)
        os.lseek(self.descriptor, 0, os.SEEK_END)

    def _last_seq(self) -> int:
        """Return the number of the last event; 0 without one."""
        rest = b""
        for start, block in self._blocks_from_end(os.lseek(self.descriptor, 0, os.SEEK_CUR)):
            # The first line of a block may begin in the block before it.
            rest, *lines = (block + rest).split(b"\n")
            lines = lines if start else [rest, *lines]
            for line in reversed(lines):
                if (event := parse_event(line)) is not None:
                    return event.seq
            rest = rest if len(rest) <= MAX_LINE_BYTES else b""
        return 0

    def _blocks_from_end(self, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield the blocks of the file with their offsets, last one first."""
        while end > 0:
            start = max(0, end - _BLOCK)
            yield start, os.pread(self.descriptor, end - start, start)
            end = start
