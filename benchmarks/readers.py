"""Delivery to 500 WebSocket readers of one job, some of which never read, and its cost.

    python benchmarks/readers.py [--readers 500] [--never 10] [--pausing 10] [--steps 1000] [--rate 20] [--plain]

Writes the event log of a run itself, a metrics event for each step and a progress event for every other one, at a
constant rate. `--never` readers shake hands and then read no byte; `--pausing` ones read none in the middle third of
the steps. Prints how many of the others got each step's metrics once, in order, and the last message; when, after the
last event, the last of them had received everything; the server's resident memory in MB; and its share of one core
meanwhile. The readers accept compression, as browsers do, unless `--plain` is given.
"""

from __future__ import annotations

import argparse
import base64
import os
import select
import socket
import statistics
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from common import Server, add_running_job, cpu_seconds, megabytes, percentile, process_of

from merlina.run_folder.event_log import EventLog
from merlina.schemas.events import Ended, Metrics, Progress

_JOB = "job_20250101_000000"
_METRICS = {f"metric_{number}": 1.23456789 / (number + 1) for number in range(64)}
_GIVE_UP_SECONDS = 120
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=500)
    parser.add_argument("--never", type=int, default=10, help="how many of them never read")
    parser.add_argument("--pausing", type=int, default=10, help="how many of them pause")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20, help="steps a second")
    parser.add_argument("--plain", action="store_true", help="accept no compression")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = add_running_job(root, _JOB)
        with run.locked():
            server = Server(root).start()
            try:
                Trial(server, EventLog(run.events_file), options).run()
            finally:
                server.stop()


@dataclass
class Reader:
    """One connection. It stores no messages, only whether they arrived in order."""

    socket: socket.socket
    inflate: Callable[[bytes], bytes] | None
    unread: bytearray = field(default_factory=bytearray)
    last_step: int = 0
    in_order: bool = True
    statuses: int = 0
    completed_at: float | None = None
    closed: bool = False

    def read(self) -> None:
        chunk = self.socket.recv(1 << 18)
        self.unread += chunk
        self.closed = self.closed or not chunk
        while (frame := take_frame(self.unread)) is not None:
            self._on_frame(*frame)

    def _on_frame(self, code: int, compressed: bool, content: bytes) -> None:
        if code == _PING:
            self._answer(_PONG, content)
        elif code == _CLOSE:
            self._answer(_CLOSE, content)
            self.closed = True
        elif compressed and self.inflate:
            self._on_message(self.inflate(content + b"\x00\x00\xff\xff"))
        else:
            self._on_message(content)

    def _on_message(self, message: bytes) -> None:
        self.in_order = self.in_order and self.completed_at is None
        if message.startswith(b'{"type":"metrics"'):
            step = int(message.partition(b'"step":')[2].partition(b",")[0])
            self.in_order = self.in_order and step == self.last_step + 1
            self.last_step = step
        elif message.startswith(b'{"type":"completed"'):
            self.completed_at = time.monotonic()
        else:
            self.statuses += 1

    def _answer(self, code: int, content: bytes) -> None:
        # A mask of zeros leaves the content as it is.
        self.socket.sendall(bytes([0x80 | code, 0x80 | len(content)]) + bytes(4) + content)


def take_frame(unread: bytearray) -> tuple[int, bool, bytes] | None:
    """Remove the first complete frame: (opcode, whether compressed, content); None if there is none."""
    if len(unread) < 2:
        return None
    length, begin = unread[1], 2
    assert length != 127, "a frame of more than 64 KiB"
    if length == 126:
        begin = 4
        length = struct.unpack_from("!H", unread, 2)[0] if len(unread) >= 4 else 1 << 20
    if len(unread) < begin + length:
        return None
    frame = unread[0] & 0x0F, bool(unread[0] & 0x40), bytes(unread[begin : begin + length])
    del unread[: begin + length]
    return frame


def connect(port: int, plain: bool) -> Reader:
    """Open a connection and complete the handshake; all later bytes are unread."""
    connection = socket.socket()
    # A small buffer in the kernel, so that the server soon notices a connection that does not read.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET /ws/{_JOB} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13",
    ]  # fmt: skip
    if not plain:
        lines.append("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = bytearray()
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    compressed = b"permessage-deflate" in head
    return Reader(connection, zlib.decompressobj(wbits=-15).decompress if compressed else None)


class Trial:
    """Writes the log and reads from all sockets, in turn."""

    def __init__(self, server: Server, log: EventLog, options: argparse.Namespace) -> None:
        self._log = log
        self._options = options
        self._server = server
        self._process = process_of(server)
        self._poller = select.epoll()
        self._readers: dict[int, Reader] = {}
        self._memory: list[float] = []
        self._sampled_at = 0.0

    def run(self) -> None:
        before = megabytes(self._process)
        silent = [connect(self._server.port, self._options.plain) for _ in range(self._options.never)]
        for _ in range(self._options.readers - self._options.never):
            self._watch(connect(self._server.port, self._options.plain))
        pausing = list(self._readers.values())[: self._options.pausing]
        time.sleep(1)
        connected = megabytes(self._process)
        began, used, mine = time.monotonic(), cpu_seconds(self._process), cpu_seconds(psutil.Process())
        ended_at = self._write_all(pausing)
        finished = self._read_to_the_end(ended_at)
        seconds = time.monotonic() - began
        self._report(ended_at)
        cpu = (cpu_seconds(self._process) - used) / seconds, (cpu_seconds(psutil.Process()) - mine) / seconds
        print(f"all were through within {_GIVE_UP_SECONDS} s: {finished}")
        print(f"share of one core over {seconds:.0f} s: server {cpu[0]:.0%}, this process {cpu[1]:.0%}")
        for reader in silent:
            reader.socket.close()
        time.sleep(3)
        print(
            f"memory in MB: {before:.0f} alone, {connected:.0f} with all connected, {max(self._memory):.0f} at most, "
            f"{megabytes(self._process):.0f} after; by thirds of the run {self._memory_by_thirds()}"
        )

    def _watch(self, reader: Reader) -> None:
        self._readers[reader.socket.fileno()] = reader
        self._poller.register(reader.socket, select.EPOLLIN)

    def _write_all(self, pausing: list[Reader]) -> float:
        """Return the time at which the last event was written."""
        steps, gap = self._options.steps, 1 / self._options.rate
        due = time.monotonic()
        for step in range(1, steps + 1):
            if step == steps // 3:
                for reader in pausing:
                    self._poller.unregister(reader.socket)
            if step == 2 * steps // 3:
                for reader in pausing:
                    self._poller.register(reader.socket, select.EPOLLIN)
            self._log.append(Metrics(step=step, metrics={"loss": 1.0 / step, **_METRICS}))
            if step % 2 == 0:
                self._log.append(Progress(step=step, total_steps=steps))
            due += gap
            self._read_until(due)
        self._log.append(Ended(state="completed", output_dir="o", final_metrics={}))
        return time.monotonic()

    def _read_until(self, due: float) -> None:
        while (now := time.monotonic()) < due:
            self._read_some(due - now)

    def _read_to_the_end(self, ended_at: float) -> bool:
        while any(not reader.closed for reader in self._readers.values()):
            if time.monotonic() > ended_at + _GIVE_UP_SECONDS:
                return False
            self._read_some(0.2)
        return True

    def _read_some(self, seconds: float) -> None:
        for descriptor, _ in self._poller.poll(seconds):
            reader = self._readers[descriptor]
            reader.read()
            if reader.closed:
                self._poller.unregister(descriptor)
        if time.monotonic() > self._sampled_at + 1:
            self._sampled_at = time.monotonic()
            self._memory.append(megabytes(self._process))

    def _memory_by_thirds(self) -> str:
        third = max(1, len(self._memory) // 3)
        parts = (self._memory[begin : begin + third] for begin in (0, third, 2 * third))
        return ", ".join(f"{statistics.mean(part):.0f}" for part in parts if part)

    def _report(self, ended_at: float) -> None:
        readers = list(self._readers.values())
        whole = [
            reader for reader in readers
            if reader.in_order and reader.last_step == self._options.steps and reader.completed_at is not None
        ]  # fmt: skip
        waits = [reader.completed_at - ended_at for reader in whole if reader.completed_at is not None] or [
            float("nan")
        ]
        statuses = [reader.statuses for reader in readers]
        print(
            f"{len(whole)} of {len(readers)} reading readers got all {self._options.steps} steps and the last message"
        )
        print(
            f"from the last event to the last message: median {percentile(waits, 0.5):.2f} s, last {max(waits):.2f} s"
        )
        print(f"other messages a reader: {min(statuses)} to {max(statuses)}")


if __name__ == "__main__":
    main()
