"""Events during a pause and a resume: other requests, crashes of server and worker, connected clients."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from merlina.errors import NotFoundError
from merlina.schemas.messages import MetricsMessage, StatusUpdate
from tests.harness import Server, acting_worker, pairs_file, until

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]

LAST = 50
LONG: dict[str, Any] = {"max_steps": LAST, "num_epochs": 1000, "save_steps": 10, "eval_steps": 0}


def until_state(server: Server, job: str, state: str, seconds: float = 30) -> None:
    until(lambda: server.status(job).status == state, seconds, f"{state} of {job}")


def halted(server: Server, config: dict[str, Any], **params: Any) -> str:
    """A job with a worker that is stopped (SIGSTOP) in the middle of its training."""
    with server.http() as http:
        job = str(http.post("/train", json=config, params=params).json()["job_id"])
    server.until_step(job, 15)
    server.kill_worker(job, signal.SIGSTOP)
    return job


def test_a_subscriber_stays_connected_over_a_pause_and_all_counts_include_it(server: Server, config: Config) -> None:
    job = server.train(config(server, "watched", **LONG))
    states: list[str] = []
    steps: list[int] = []
    with server.client() as client, server.http() as http:
        for message in client.watch(job):
            if isinstance(message, MetricsMessage):
                steps.append(message.step)
                if message.step == 15:
                    client.pause(job)
            elif isinstance(message, StatusUpdate) and states[-1:] != [message.status]:
                states.append(message.status)
                if message.status == "paused":
                    assert job in [entry.job_id for entry in client.history("paused").jobs]
                    assert client.jobs()[job].status == "paused"
                    assert client.stats().queue.paused_count == client.queue_status().stats.paused_count == 1
                    assert 'merlina_jobs{state="paused"} 1.0' in http.get("/metrics").text
                    client.resume(job)
    assert message.type == "completed"
    assert steps == list(range(1, LAST + 1))
    assert states.count("paused") == 1
    assert states[states.index("paused") - 1] == "training"
    assert "training" in states[states.index("paused") :]


@pytest.mark.long
def test_a_job_that_still_loads_starts_at_step_1(server: Server, config: Config) -> None:
    many = pairs_file(server.root / "many.jsonl", 30_000)
    source = {"source_type": "local_file", "file_path": str(many)}
    changes = {"dataset": {"source": source, "test_size": 0}, "max_steps": 2, "eval_steps": 0}
    job = server.train(config(server, "loading", **changes))
    until_state(server, job, "loading_dataset")
    with server.client() as client:
        assert client.pause(job).status == "success"
        until_state(server, job, "paused")
        assert client.status(job).last_checkpoint is None
        assert any("a pause was requested" in line for line in server.log_lines(job))
        assert "starts at step 1" in client.resume(job).message
    ended = server.until_ended(job)
    assert (ended.status, ended.attempt, list(server.losses(job))) == ("completed", 2, [1, 2])


@pytest.mark.long
def test_a_restarted_server_delivers_a_pause_and_kills_a_worker_that_does_not_complete_it(
    new_server: NewServer, config: Config
) -> None:
    server = new_server(STOP_GRACE_SECONDS="3")
    job = halted(server, config(server, "deaf", **LONG))
    with server.client() as client:
        client.pause(job)
        server.kill()
        # As if the server had died between the row and the run folder.
        server.folder(job).pause_file.unlink()
        server.start()
        until(server.folder(job).pause_file.exists, 5, "the request in the run folder")
        until_state(server, job, "paused")
        assert any("did not pause within 3 s and was killed" in line for line in server.log_lines(job))
        client.resume(job)
    ended = server.until_ended(job)
    assert (ended.status, ended.attempt) == ("completed", 2)
    assert list(server.losses(job)) == list(range(1, LAST + 1))


def test_a_stop_outweighs_a_pause(server: Server, config: Config) -> None:
    job = halted(server, config(server, "both", **LONG))
    with server.client() as client:
        assert client.pause(job).status == "success"
        client.stop(job)
        assert "being stopped" in client.pause(job).message
        server.kill_worker(job, signal.SIGCONT)
        assert server.until_ended(job).status == "stopped"
        assert (server.root / "models" / "both" / "adapter_model.safetensors").is_file()


def test_a_job_paused_by_a_client_does_not_return_by_itself(server: Server, config: Config) -> None:
    low = halted(server, config(server, "held", **LONG), priority="low", preemptible=True)
    high = server.train(config(server, "urgent", max_steps=2, eval_steps=0), "high")
    with server.client() as client:

        def waiting_for() -> str | None:
            return next((job.waiting_for for job in client.queue_jobs().queued if job.job_id == high), None)

        until(lambda: waiting_for() == f"{low} to pause", 5, "what the high job waits for")
        until(server.folder(low).pause_file.exists, 5, "the request in the run folder")
        assert f"preempted by {high}" in server.folder(low).pause_file.read_text()
        client.pause(low)
        server.kill_worker(low, signal.SIGCONT)
        assert server.until_ended(high).status == "completed"
        assert client.status(low).status == "paused"
        assert "can be resumed" in client.stop(low).message
        assert client.status(low).status == "stopped"


def test_a_job_that_never_ran_is_cancelled_or_deleted_out_of_its_pause(server: Server, config: Config) -> None:
    with acting_worker(server), server.client() as client:
        second, third = (server.train(config(server, name, **LONG)) for name in ("second", "third"))
        client.pause(second)
        client.pause(third)
        assert "No model was saved" in client.stop(second).message
        assert client.status(second).status == "cancelled"
        client.delete(third)
        with pytest.raises(NotFoundError):
            client.status(third)


def test_preemptible_without_low_priority_is_a_warning(server: Server, config: Config) -> None:
    with acting_worker(server), server.http() as http:
        created = http.post("/train", json=config(server, "vain"), params={"preemptible": True}).json()
        http.post(f"/jobs/{created['job_id']}/stop").raise_for_status()
    assert any("is never preempted" in warning for warning in created["warnings"])
