"""The event log of a run, `events.jsonl`: one numbered event per line (see `merlina.schemas.events`)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from merlina.schemas.events import BaseEvent, Event, KnownEvent, parse_event

_E = TypeVar("_E", bound=BaseEvent)
_SILENCE_SECONDS = 2.0
_BLOCK = 1 << 20
# No event is longer than this.
MAX_LINE_BYTES = 1 << 20
# Characters of a string in an event. However they are escaped, the line stays below the limit.
_MAX_TEXT = 100_000
# A larger gap in the numbering means damage rather than lost lines.
_MAX_GAP = 1_000_000


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
