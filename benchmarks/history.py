"""Response times with a long history: 1,000 jobs with 1,000,000 metric rows in total.

    python benchmarks/history.py [--jobs 1000] [--rows 1000000] [--largest 100000] [--requests 200]

Fills a database through merlina.storage, starts a server over it, and prints for each request its median, 95th
percentile and maximum in ms. `first` is the first request of its kind. Between two requests a row is written to the
database, as by a run, so that no response comes from the cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from common import Server, percentile

from merlina.storage import jobs, metrics
from merlina.storage.database import Database
from merlina.storage.metrics import MetricRecord

METRICS = {
    "loss": 1.2345678, "nll_loss": 1.1234567, "log_odds_loss": 0.1111111, "learning_rate": 1.9e-05, "epoch": 0.5,
    "rewards_accuracy": 0.75, "rewards_margin": 0.0123456, "grad_norm": 0.4321, "memory_gb": 1.5,
}  # fmt: skip
_BATCH = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="metric rows of all jobs together")
    parser.add_argument("--largest", type=int, default=100_000, help="metric rows of the one largest job")
    parser.add_argument("--requests", type=int, default=200, help="requests of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fill(root, options.jobs, options.rows, options.largest)
        server = Server(root, {"MAX_CONCURRENT_JOBS": "1"}).start()
        try:
            measure_all(server, options.requests)
        finally:
            server.stop()


def fill(root: Path, count: int, rows: int, largest: int) -> None:
    """Add jobs of which the newest but one has `largest` rows; the others share the rest evenly."""
    began = time.monotonic()
    (root / "data").mkdir()
    database = Database(f"sqlite:///{root / 'data' / 'merlina.db'}")
    database.migrate()
    with database.write() as connection:
        numbers = [jobs.add(connection, job_values(index)).number for index in range(count)]
    each, rest = divmod(rows - largest, count - 1)
    for index, number in enumerate(numbers):
        fill_job(database, number, largest if index == count - 2 else each + (index < rest))
    size = database.size_bytes() / 1e6
    database.close()
    print(f"{count} jobs and {rows} metric rows written in {time.monotonic() - began:.1f} s, {size:.0f} MB")


def job_values(index: int) -> dict[str, object]:
    created = 1.7e9 + index * 3600
    state = ("completed", "completed", "completed", "failed", "stopped", "cancelled")[index % 6]
    return {
        "job_id": job_name(index), "state": state, "priority": 3, "config": {"base_model": "m", "seed": index},
        "base_model": "some/model", "output_name": f"model_{index}", "target_dir": f"models/model_{index}",
        "progress": 1.0, "step": 900, "total_steps": 900, "loss": 1.0, "created_at": created,
        "updated_at": created + 600, "started_at": created + 1, "ended_at": created + 600,
        "final_metrics": {"final_loss": 1.0}, "error": "It broke." if state == "failed" else None,
    }  # fmt: skip


def job_name(index: int) -> str:
    return f"job_20250101_{index:06d}"


def fill_job(database: Database, number: int, rows: int) -> None:
    for begin in range(0, rows, _BATCH):
        steps = range(begin + 1, min(rows, begin + _BATCH) + 1)
        with database.write() as connection:
            metrics.add_rows(connection, number, [MetricRecord(step, 1.7e9 + step, dict(METRICS)) for step in steps])


def measure_all(server: Server, requests: int) -> None:
    with server.http() as http:
        listed = list(http.get("/jobs").json())
        largest = listed[1]
        middle = listed[len(listed) // 2]
        print(f"{'request':<52}{'first':>8}{'p50':>8}{'p95':>8}{'max':>8}{'KB':>8}")
        for path in (
            "/health",
            "/jobs",
            "/jobs/history",
            f"/jobs/history?offset={len(listed) - 50}",
            "/jobs/history?status=failed",
            f"/status/{largest}",
            "/stats",
            f"/jobs/{middle}/metrics",
            f"/jobs/{middle}/metrics?max_points=500",
            f"/jobs/{largest}/metrics?max_points=500",
            f"/jobs/{largest}/metrics?since_step=99000",
        ):
            measure(http, path, requests)


def measure(http: httpx.Client, path: str, requests: int) -> None:
    taken = []
    for _ in range(requests):
        # Whether there is such an upload is looked up as the beginning of a write.
        http.delete("/dataset/uploads/nothing")
        began = time.monotonic()
        answer = http.get(path)
        taken.append((time.monotonic() - began) * 1000)
        answer.raise_for_status()
    values = (taken[0], statistics.median(taken), percentile(taken, 0.95), max(taken), len(answer.content) / 1024)
    print(f"{path:<52}" + "".join(f"{value:>8.1f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
