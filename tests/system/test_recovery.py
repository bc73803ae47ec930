"""Nothing is lost if the server, the worker or both are killed; and a stop stops."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness import Server, acting_worker, has_ended, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]

# Long enough to be hit in the middle.
LAST = 60
LONG = {"max_steps": LAST, "save_steps": 10, "eval_steps": 30}


def spare_process(server: Server) -> psutil.Process | None:
    """The process that the server has started in advance, which may still be importing."""
    assert server.process is not None
    for child in psutil.Process(server.process.pid).children():
        # A child may end at this moment.
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(child.cmdline()).startswith("merlina spare"):
                return child
    return None


def test_a_run_in_the_spare_process_outlives_its_server_without_a_step_lost_and_its_death_is_found_later(
    new_server: NewServer, config: Config
) -> None:
    server = new_server(MAX_CONCURRENT_JOBS="2", SPARE_PROCESSES="true")
    both = server.train(config(server, "both", **{**LONG, "max_steps": 2000, "num_epochs": 1000}))
    server.until_step(both, 1)
    # The first spare process was started together with the helper process that checked the first run.
    used = until(lambda: spare_process(server), what="the spare process")
    running = server.train(config(server, "outlives", **LONG))
    server.until_step(running, 10)
    worker = server.folder(running).worker()
    assert worker is not None
    assert worker.pid == used.pid
    spare = until(lambda: spare_process(server), what="the next spare process")
    server.kill()
    server.kill_worker(both)
    at_kill = server.folder(running).events_file.stat().st_size
    until(lambda: server.folder(running).events_file.stat().st_size > at_kill + 2000, what="the run's going on")
    until(lambda: has_ended(spare), 5, "the end of the spare process")
    server.start()
    assert server.until_ended(running).status == "completed"
    assert list(server.losses(running)) == list(range(1, LAST + 1))
    failed = server.until_ended(both, 10)
    assert failed.status == "failed"
    assert "while the server was not running" in failed.error


def test_no_spare_process_is_started_if_the_setting_is_off(server: Server, config: Config) -> None:
    with server.http() as http:
        assert http.post("/validate", json=config(server, "checked-without-spare")).json()["valid"]
    assert spare_process(server) is None


@pytest.mark.long
def test_each_job_of_a_name_keeps_the_path_of_its_model_when_others_save(server: Server, config: Config) -> None:
    models, body = server.root / "models", config(server, "shared", **{**LONG, "save_steps": 0})
    first = server.train({**body, "max_steps": 1})
    server.until_ended(first)
    second = server.train(body)
    server.until_step(second, 5)
    with server.client() as client:
        client.stop(second)
        assert server.until_ended(second, 20).output_dir == str(models / "shared")
        assert client.status(first).output_dir == str(models / f"shared.before-{second}")
        client.resume(second)
    assert server.until_ended(second).output_dir == str(models / "shared")
    assert server.status(first).output_dir == str(models / f"shared.before-{second}")
    # The model that its first attempt saved belongs to no job now.
    assert (models / f"shared.before-{second}-2").is_dir()


@pytest.mark.long
def test_a_worker_that_does_not_obey_is_killed_after_the_grace(new_server: NewServer, config: Config) -> None:
    server = new_server(STOP_GRACE_SECONDS="1")
    job = server.train(config(server, "stubborn", **LONG))
    server.until_step(job, 5)
    server.kill_worker(job, signal.SIGSTOP)  # it can no longer react to a request
    with server.client() as client:
        client.stop(job)
    stopped = server.until_ended(job, 10)
    assert stopped.status == "stopped"
    assert "was killed" in stopped.error


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_deleted_after_it_saved_what_it_has(
    server: Server, config: Config
) -> None:
    with server.client() as client:
        with acting_worker(server):
            waiting = server.train(config(server, "second"))
            answer = client.stop(waiting)
            assert (answer.status, answer.was_queued) == ("success", True)
            assert client.status(waiting).status == "cancelled"
        rows_before = client.stats().database.total_metrics
        job = server.train(config(server, "deleted", **LONG))
        server.until_step(job, 5)
        assert client.status(waiting).status == "cancelled"
        assert not server.folder(waiting).events_file.exists()
        client.delete(job)
        assert job not in client.jobs()
        until(lambda: not server.folder(job).path.exists(), 30, "the run folder's removal")
        assert client.stats().database.total_metrics == rows_before
        assert client.status(waiting).status == "cancelled"
    assert (server.root / "models" / "deleted" / "adapter_model.safetensors").exists()


def test_a_run_that_failed_while_saving_is_resumed_without_another_step(server: Server, config: Config) -> None:
    blocked = server.root / "models" / "blocked"
    body = config(server, "blocked", max_steps=10, eval_steps=5)
    blocked.parent.mkdir(exist_ok=True)
    in_the_way = blocked.with_name(f".{blocked.name}.{{}}.partial")
    job = server.train(body)
    in_the_way = Path(str(in_the_way).format(job))
    in_the_way.write_text("a file where the model is to be written")
    assert server.until_ended(job).status == "failed"
    in_the_way.unlink()
    with server.client() as client:
        client.resume(job)
    assert server.until_ended(job).status == "completed"
    assert list(server.losses(job)) == list(range(1, 11))
    assert "| Evaluation loss |" in (blocked / "README.md").read_text()


def test_two_servers_never_share_a_data_folder(server: Server) -> None:
    second = Server(server.root)
    with pytest.raises(AssertionError, match="Another Merlina server uses"):
        second.start()
