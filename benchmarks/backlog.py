"""A server with a backlog: an event log that was not ingested, and a long history of ended jobs.

    python benchmarks/backlog.py [--megabytes 500] [--jobs 100000] [--seconds 30]

Starts a server with a running job of which `--megabytes` of the event log are not ingested. Prints the seconds until
`/health` first responded, its median and largest time during ingestion, and the ingested megabytes per second. Then it
starts a server with `--jobs` ended jobs and their run folders, and prints the seconds until it was ready and its share
of a core while idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from common import Server

from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import Started, StateChanged
from merlina.storage.database import Database
from merlina.storage.tables import jobs

_METRICS = {f"metric_{number}": number / 7 for number in range(12)}
_JOB = "job_20260101_000000"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the log that is not ingested")
    parser.add_argument("--jobs", type=int, default=100_000, help="ended jobs")
    parser.add_argument("--seconds", type=float, default=30, help="how long each server is observed")
    given = parser.parse_args()
    if given.megabytes:
        measure_backlog(given.megabytes, given.seconds)
    if given.jobs:
        measure_idle(given.jobs, given.seconds)


def measure_backlog(megabytes: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        database = add_jobs(root, [{**row(0), "job_id": _JOB, "state": "training", "attempt_seen": 1}])
        folder = RunFolder(root / "data" / "runs" / _JOB)
        with folder.locked():  # as its worker would
            write_log(folder, megabytes << 20)
            began = time.monotonic()
            server = Server(root, {}).start()
            ready = time.monotonic() - began
            try:
                times = measure_health(server, seconds)
            finally:
                server.stop()
        with database.read() as connection:
            read = connection.execute(jobs.select()).one().log_offset
        database.close()
    print(f"{megabytes} MB unread: ready after {ready:.2f} s; {read / 2**20 / seconds:.1f} MB/s ingested meanwhile")
    print(f"/health: median {statistics.median(times) * 1e3:.1f} ms, largest {max(times) * 1e3:.0f} ms")


def measure_idle(count: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        add_jobs(root, [row(number) for number in range(count)]).close()
        for number in range(count):
            folder = RunFolder(root / "data" / "runs" / f"job_{number}")
            folder.path.mkdir(parents=True)
            folder.events_file.write_bytes(b"\n")
        began = time.monotonic()
        server = Server(root, {}).start()
        ready = time.monotonic() - began
        try:
            assert server.process is not None
            process = psutil.Process(server.process.pid)
            time.sleep(15)
            before = process.cpu_times()
            time.sleep(seconds)
            after = process.cpu_times()
        finally:
            server.stop()
    used = after.user + after.system - before.user - before.system
    print(f"{count} ended jobs: ready after {ready:.2f} s; {used / seconds:.2%} of a core while idle")


def row(number: int) -> dict[str, object]:
    return {
        "job_id": f"job_{number}", "state": "completed", "priority": 3, "config": {"base_model": "m"},
        "base_model": "m", "output_name": f"o{number}", "target_dir": f"/m/o{number}", "created_at": 1.7e9,
        "updated_at": 1.7e9, "last_seq": 9, "log_offset": 1,
    }  # fmt: skip


def add_jobs(root: Path, rows: list[dict[str, object]]) -> Database:
    (root / "data").mkdir()
    database = Database(f"sqlite:///{root / 'data' / 'merlina.db'}")
    database.migrate()
    with database.write() as connection:
        connection.execute(jobs.insert(), rows)
    return database


def write_log(folder: RunFolder, size: int) -> None:
    """Write progress and metrics of steps until the log has `size` bytes."""
    log = EventLog(folder.events_file)
    log.append(Started(attempt=1, pid=1))
    log.append(StateChanged(state="training"))
    log.close()
    step, now = 0, time.time()
    with folder.events_file.open("ab", buffering=1 << 20) as file:
        while file.tell() < size:
            step += 1
            progress = {"type": "progress", "step": step, "total_steps": 10**7}
            metrics = {"type": "metrics", "step": step, "metrics": _METRICS}
            for seq, event in ((2 * step + 1, progress), (2 * step + 2, metrics)):
                file.write(json.dumps({"seq": seq, "time": now, **event}).encode() + b"\n")


def measure_health(server: Server, seconds: float) -> list[float]:
    """Return the seconds that each response took."""
    times = []
    until = time.monotonic() + seconds
    with httpx.Client(base_url=server.url, timeout=60) as http:
        while time.monotonic() < until:
            began = time.monotonic()
            http.get("/health").raise_for_status()
            times.append(time.monotonic() - began)
            time.sleep(0.05)
    return times


if __name__ == "__main__":
    main()
