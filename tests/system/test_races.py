"""Two operations on one job at the same time: the result is that of one order of them, and no unlisted job trains.

Always a few chosen ones; with `--long` RACES random ones (6 unless the variable says otherwise), each pair in turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any

import httpx
import psutil
import pytest

from merlina.run_folder.event_log import read_events
from merlina.run_folder.folder import RunFolder
from tests.harness import ENDED, Server, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]

RACES = int(os.environ.get("RACES", "6"))
OPERATIONS = ("stop", "pause", "resume", "retry", "delete", "kill")
PAIRS = list(combinations_with_replacement(OPERATIONS, 2))
AT_REST = (*ENDED, "paused")
LONG: dict[str, Any] = {"max_steps": 2000, "num_epochs": 1000, "save_steps": 5, "eval_steps": 0}


class Race:
    """One server, and the operations that two threads carry out on one of its jobs at the same moment."""

    def __init__(self, server: Server, http: httpx.Client) -> None:
        self.server = server
        self.http = http

    def carry_out(self, operation: str, job: str) -> int:
        """Return the status code; 0 for a kill, which has none."""
        if operation == "kill":
            worker = self.server.folder(job).worker()
            if worker is not None and self.server.folder(job).is_locked():
                kill_if_there(worker.pid)
            return 0
        if operation == "delete":
            return self.http.delete(f"/jobs/{job}").status_code
        return self.http.post(f"/jobs/{job}/{operation}").status_code

    def run(self, pair: tuple[str, str], job: str) -> list[int]:
        barrier, codes = threading.Barrier(2), [-1, -1]

        def take_part(index: int) -> None:
            barrier.wait()
            codes[index] = self.carry_out(pair[index], job)

        threads = [threading.Thread(target=take_part, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return codes

    def status(self, job: str) -> str | None:
        response = self.http.get(f"/status/{job}")
        return str(response.json()["status"]) if response.status_code == 200 else None

    def clear(self) -> None:
        assert self.http.delete("/jobs").status_code == 200
        runs = self.server.root / "data" / "runs"
        with contextlib.suppress(AssertionError):
            until(lambda: not any(runs.iterdir()), 60)
        assert not sorted(str(path.relative_to(runs)) for path in runs.rglob("*"))


def kill_if_there(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def training_unlisted(server: Server, listed: set[str]) -> set[str]:
    """Return jobs that no list has although their workers are alive."""
    running = {path.name for path in (server.root / "data" / "runs").iterdir() if RunFolder(path).is_locked()}
    return running - listed


def num_ends(folder: RunFolder) -> int:
    """Return how many attempts of a job have ended or paused."""
    count, offset = 0, 0
    while True:
        events, offset = read_events(folder.events_file, offset)
        if not events:
            return count
        count += sum(event.type in ("ended", "paused") for event in events)


def num_starts(server: Server, job: str) -> int:
    """Return how many workers were started for a job; one that was killed at once wrote no event itself."""
    return (server.root / "server.log").read_text().count(f"starting {job} (attempt")


def test_after_two_operations_at_the_same_moment_a_job_comes_to_one_end(server: Server, config: Config) -> None:
    with server.http() as http:
        race = Race(server, http)
        job = server.train(config(server, "raced-a-little", **LONG))
        server.until_step(job, 6)
        for pair in (("pause", "kill"), ("resume", "resume"), ("stop", "delete")):
            context = f"{pair} on a job that was {race.status(job)}"
            codes = race.run(pair, job)
            assert set(codes) <= {0, 200, 404, 409}, (context, codes)
            assert pair != ("resume", "resume") or codes.count(200) <= 1, (context, codes)
            settle(race, job, context)
        until(lambda: race.status(job) is None, 60, "the job's deletion")


@pytest.mark.long
def test_of_two_operations_on_one_job_one_order_happens_and_nothing_breaks(
    new_server: NewServer, config: Config
) -> None:
    server = new_server(MAX_CONCURRENT_JOBS="2", STOP_GRACE_SECONDS="60", SPARE_PROCESSES="true")
    chosen = random.Random(int(os.environ.get("SEED", "1")))
    pairs = [PAIRS[number % len(PAIRS)] for number in range(RACES)]
    chosen.shuffle(pairs)
    with server.http() as http:
        race = Race(server, http)
        job: str | None = None
        for number, pair in enumerate(pairs):
            if job is None or race.status(job) is None:
                job = server.train(config(server, f"raced-{number}", **LONG))
                server.until_step(job, 6)
            elif race.status(job) in AT_REST and chosen.random() < 0.5:
                http.post(f"/jobs/{job}/resume")
            where = race.status(job)
            codes = race.run(pair, job)
            context = f"race {number}: {pair} on a job that was {where}: {codes}"
            assert set(codes) <= {0, 200, 400, 404, 409}, context
            if pair in (("resume", "resume"), ("delete", "delete")):
                assert codes.count(200) <= 1, context
            settle(race, job, context)
            others = [other for other in http.get("/jobs").json() if other != job]
            for other in others:
                http.delete(f"/jobs/{other}")
        race.clear()
    assert not [child for child in psutil.Process(server.process.pid).children(True) if "raced" in child.name()]  # type: ignore[union-attr]


def settle(race: Race, job: str, context: str) -> None:
    """Check that the job ends once and stays ended, and that no unlisted job trains."""
    server = race.server
    until(
        lambda: not training_unlisted(server, set(race.http.get("/jobs").json())),
        90,  # the server kills a worker that has not stopped after STOP_GRACE_SECONDS, for instance one that imports
        f"the end of workers whose jobs are not listed after {context}",
    )
    if race.status(job) not in (None, *AT_REST):
        race.http.post(f"/jobs/{job}/stop")
    until(lambda: race.status(job) in (None, *AT_REST), 60, f"the end of the job after {context}")
    end = race.status(job)
    if end is None:
        return
    assert num_ends(server.folder(job)) <= num_starts(server, job), context
    until(lambda: not server.folder(job).is_locked(), 20, f"the end of the worker after {context}")
    assert race.status(job) == end, context
