"""The clock may be set, and the machine may sleep: only timestamps change."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from merlina.jobs.supervisor.awake_clock import AwakeClock
from merlina.run_folder.event_log import EventLog
from merlina.schemas.events import Ended, Progress, Started
from tests.harness import Server, add_running_job, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
LONG: dict[str, Any] = {"max_steps": 2000, "num_epochs": 1000, "save_steps": 20, "eval_steps": 0}


def test_time_asleep_hardly_counts() -> None:
    moments = iter([0.0, 1.0, 2.0, 3602.0, 3603.0])
    clock = AwakeClock(lambda: next(moments))
    counted = []
    for _ in range(4):
        clock.tick()
        counted.append(clock.seconds)
    assert counted == [1.0, 2.0, 7.0, 8.0]


def shifted_by(shift: Path) -> dict[str, str]:
    """Return variables that shift a process's clock by the seconds in the file."""
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(shift), "DONT_FAKE_MONOTONIC": "1"}


@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime")
def test_a_server_whose_clock_is_set_back_continues_and_only_times_change(
    new_server: NewServer, tmp_path: Path
) -> None:
    shift, running = tmp_path / "shift", add_running_job(tmp_path, "job_20250101_000000")
    shift.write_text("+0")
    running.path.mkdir(parents=True)
    log = EventLog(running.events_file)
    with running.locked():
        server = new_server(FAKETIME_CACHE_DURATION="1", **shifted_by(shift))
        stored = {"config": {"lora_r": 8}}
        with server.http() as http:
            http.post("/configs/save", json={"name": "before", **stored}).raise_for_status()
            began = parsedate_to_datetime(http.get("/health").headers["date"])
            shift.write_text("-1h")
            until(lambda: parsedate_to_datetime(http.get("/health").headers["date"]) < began, 20, "the clock's change")
        log.append(Started(attempt=1, pid=1, process="1 1 1"))
        log.append(Progress(step=3, total_steps=9))
        until(lambda: server.status("job_20250101_000000").current_step == 3, 20, "the step")
        with server.http() as http:
            http.post("/configs/save", json={"name": "after", **stored}).raise_for_status()
            created = {each["name"]: each["created_at"] for each in http.get("/configs/list").json()["configs"]}
            assert created["after"] < created["before"]
        log.append(Ended(state="completed", output_dir="o", final_metrics={}))
        log.close()
        until(lambda: server.status("job_20250101_000000").status == "completed", 20, "the end")


@pytest.mark.long
@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime")
def test_setting_the_clock_changes_timestamps_only(new_server: NewServer, config: Config, tmp_path: Path) -> None:
    shift = tmp_path / "shift"
    shift.write_text("+0")
    server = new_server(FAKETIME_NO_CACHE="1", STOP_GRACE_SECONDS="60", **shifted_by(shift))
    with server.client() as client:
        job = server.train(config(server, "before", **LONG))
        server.until_step(job, 10)
        shift.write_text("-1h")
        server.until_step(job, (server.status(job).current_step or 0) + 10)
        server.kill_worker(job)
        failed = until(lambda: (s := server.status(job)).status == "failed" and s, 15, "the death's being noticed")
        assert failed.ended_at is not None
        assert failed.started_at is not None
        assert failed.ended_at < failed.started_at
        client.resume(job)
        until(lambda: server.status(job).status == "training", 60, "the resumed training")
        server.until_step(job, (failed.current_step or 0) + 5)
        client.stop(job)
        shift.write_text("+1h")
        stopped = server.until_ended(job)
        assert (stopped.status, stopped.error) == ("stopped", None)
        assert stopped.output_dir is not None
        after = server.train(config(server, "after", max_steps=2))
        assert server.until_ended(after).status == "completed"
        assert list(server.losses(job)) == list(range(1, (stopped.current_step or 0) + 1))


@pytest.mark.long
def test_a_stop_across_a_suspend_leaves_the_run_its_time(new_server: NewServer, config: Config) -> None:
    server = new_server(STOP_GRACE_SECONDS="6")
    assert server.process is not None
    job = server.train(config(server, "asleep", **LONG))
    server.until_step(job, 5)
    server.kill_worker(job, signal.SIGSTOP)
    with server.client() as client:
        client.stop(job)
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(8)  # longer than the grace period; server and worker are both suspended, so there is nothing to poll
    os.kill(server.process.pid, signal.SIGCONT)
    server.kill_worker(job, signal.SIGCONT)
    stopped = server.until_ended(job)
    assert (stopped.status, stopped.error) == ("stopped", None)
    assert stopped.output_dir is not None
