"""Latency of 200 requests per second to /status and /jobs, and their cost for training on the same cores.

    python benchmarks/polling.py [--rate 200] [--pairs 6] [--steps 30] [--hidden 256] [--jobs 20]

Trains the same small model repeatedly, in pairs of runs: one alone, one under requests to both endpoints in turn at a
constant rate. Each request is sent when it is due, even if earlier ones have no response yet, and its latency counts
from then. Prints a row for each pair: latency in ms, seconds per step alone and under load, their ratio, and shares of
one core: the server alone and under load, and this load generator. Both runs of a pair compute the same; the order of
the two alternates.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from common import Server, build_tiny_model, cpu_seconds, pairs_file, percentile, process_of, training_config, until

from merlina.run_folder.event_log import read_events
from merlina.schemas.events import Metrics

_WARM_UP_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=200, help="requests per second")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--jobs", type=int, default=20, help="jobs there are beside the one that trains")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
        server = Server(Path(folder), threads).start()
        try:
            measure_all(server, options)
        finally:
            server.stop()
            server.end_workers()


def measure_all(server: Server, options: argparse.Namespace) -> None:
    model = build_tiny_model(server.root / "model", hidden=options.hidden, layers=4)
    config = training_config(
        model, pairs_file(server.root / "pairs.jsonl", 400), "polled", max_steps=options.steps, eval_steps=0,
        save_steps=0, batch_size=4,
    )  # fmt: skip
    fill(server, config, options.jobs)
    print("pair   p50   p99   max  requests  s/step alone  under load  ratio  server alone  under load  generator")
    pairs = []
    for number in range(1, options.pairs + 1):
        rates = (0, options.rate) if number % 2 else (options.rate, 0)
        runs = {rate: run_once(server, config, rate) for rate in rates}
        pairs.append((runs[0], runs[options.rate]))
        print_pair(str(number), *pairs[-1])
    print_summary(pairs)


def fill(server: Server, config: dict[str, Any], count: int) -> None:
    """Add ended jobs for /jobs to list: queued behind a first one, then cancelled."""
    with server.client() as client:
        job_ids = [server.train(config) for _ in range(count)]
        for job_id in reversed(job_ids):
            client.stop(job_id)
        for job_id in job_ids:
            server.until_ended(job_id)


@dataclass
class Run:
    """Seconds per step, latencies in ms, and shares of one core under load."""

    step_seconds: float
    latencies: list[float]
    server_share: float
    generator_share: float


def run_once(server: Server, config: dict[str, Any], rate: int) -> Run:
    job_id = server.train(config)
    file = server.folder(job_id).events_file
    until(lambda: metric_times(file), 120, "the first step")
    me, serving = psutil.Process(), process_of(server)
    began, mine, its = time.monotonic(), cpu_seconds(me), cpu_seconds(serving)
    paths = [f"/status/{job_id}", "/jobs"]
    ended = at_most_each(0.5, lambda: len(metric_times(file)) >= config["max_steps"])
    latencies = Load(server.port, rate, paths).run(ended) if rate else wait(ended)
    seconds = time.monotonic() - began
    shares = ((cpu_seconds(process) - before) / seconds for process, before in ((serving, its), (me, mine)))
    times = metric_times(file)[_WARM_UP_STEPS:]
    server.until_ended(job_id)
    return Run((times[-1] - times[0]) / (len(times) - 1), latencies, *shares)


def metric_times(file: Path) -> list[float]:
    """Return the time at which each step's metrics were written, in epoch seconds."""
    return [event.time for event in read_events(file)[0] if isinstance(event, Metrics) and "loss" in event.metrics]


def at_most_each(seconds: float, condition: Callable[[], bool]) -> Callable[[], bool]:
    """Return the condition, evaluated at most once per `seconds`."""
    last = 0.0

    def looked() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return condition()

    return looked


def wait(ended: Callable[[], bool]) -> list[float]:
    while not ended():
        time.sleep(0.1)
    return []


@dataclass
class _Connection:
    socket: socket.socket
    due: float = 0.0
    received: bytearray = field(default_factory=bytearray)


class Load:
    """Sends requests at a constant rate over persistent connections, with little processor time."""

    def __init__(self, port: int, rate: int, paths: list[str]) -> None:
        self._address = ("127.0.0.1", port)
        self._gap = 1 / rate
        self._requests = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths]
        self._poller = select.epoll()
        self._all: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._latencies: list[float] = []

    def run(self, ended: Callable[[], bool]) -> list[float]:
        """Return latencies in ms, counted from the moment each request was due."""
        due, number = time.monotonic(), 0
        while not ended():
            while (now := time.monotonic()) >= due:
                self._send(self._requests[number % len(self._requests)], due)
                due, number = due + self._gap, number + 1
            self._receive(due - now)
        while len(self._idle) < len(self._all):
            self._receive(10)
        for connection in self._all.values():
            connection.socket.close()
        return self._latencies

    def _send(self, request: bytes, due: float) -> None:
        connection = self._idle.pop() if self._idle else self._open()
        connection.due = due
        connection.socket.sendall(request)

    def _open(self) -> _Connection:
        connection = _Connection(socket.create_connection(self._address))
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._all[connection.socket.fileno()] = connection
        self._poller.register(connection.socket, select.EPOLLIN)
        return connection

    def _receive(self, seconds: float) -> None:
        for descriptor, _ in self._poller.poll(max(0.0, seconds)):
            connection = self._all[descriptor]
            chunk = connection.socket.recv(1 << 18)
            if not chunk:
                self._drop(connection)
                continue
            connection.received += chunk
            if is_complete(connection.received):
                self._latencies.append((time.monotonic() - connection.due) * 1000)
                connection.received.clear()
                self._idle.append(connection)

    def _drop(self, connection: _Connection) -> None:
        """Remove a connection that the server closed because it was idle."""
        assert connection in self._idle, "the server closed a connection before it responded"
        self._idle.remove(connection)
        del self._all[connection.socket.fileno()]
        connection.socket.close()


def is_complete(response: bytearray) -> bool:
    """Return whether head and body were received. Raises AssertionError if the status is not 200."""
    head, separator, body = response.partition(b"\r\n\r\n")
    if not separator:
        return False
    assert head.startswith(b"HTTP/1.1 200"), head
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


def print_pair(name: str, alone: Run, loaded: Run) -> None:
    ratio = loaded.step_seconds / alone.step_seconds
    print(
        f"{name:>4}{latency_columns(loaded.latencies)}{alone.step_seconds:>14.4f}{loaded.step_seconds:>12.4f}"
        f"{ratio:>7.3f}{alone.server_share:>14.1%}{loaded.server_share:>12.1%}{loaded.generator_share:>11.1%}",
        flush=True,
    )


def latency_columns(taken: list[float]) -> str:
    values = (percentile(taken, 0.5), percentile(taken, 0.99), max(taken))
    return "".join(f"{value:>6.1f}" for value in values) + f"{len(taken):>10}"


def print_summary(pairs: list[tuple[Run, Run]]) -> None:
    taken = [latency for _, loaded in pairs for latency in loaded.latencies]
    ratios = [loaded.step_seconds / alone.step_seconds for alone, loaded in pairs]
    spread = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
    print(f" all{latency_columns(taken)}")
    print(json.dumps({
        "p99_ms": round(percentile(taken, 0.99), 1),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_mean": round(statistics.mean(ratios), 3),
        "ratio_standard_error": round(spread, 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
