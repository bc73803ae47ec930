"""Runs that pause, are preempted, are killed or are stopped end with exactly the weights of an undisturbed one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.harness import Server, acting_worker, pairs_file, training_config, until
from tests.system.test_recovery import Config, NewServer

pytestmark = pytest.mark.slow

LAST = 60
LONG: dict[str, Any] = {"max_steps": LAST, "num_epochs": 1000, "save_steps": 10, "eval_steps": 30}


def weights(server: Server, name: str) -> dict[str, Any]:
    return load_file(server.root / "models" / name / "adapter_model.safetensors")


def assert_same_weights(server: Server, name: str, other: str) -> None:
    ours, theirs = weights(server, name), weights(server, other)
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[key]) for key, tensor in ours.items())


def until_state(server: Server, job: str, state: str, seconds: float = 30) -> None:
    until(lambda: server.status(job).status == state, seconds, f"{state} of {job}")


@pytest.fixture(scope="module")
def undisturbed(server: Server, tiny_model: Path) -> str:
    """The job with which all others are compared."""
    pairs = pairs_file(server.root / "pairs.jsonl")
    job = server.train({**training_config(tiny_model, pairs, "undisturbed"), **LONG})
    assert server.until_ended(job).status == "completed"
    return job


def test_a_run_that_is_paused_and_preempted_ends_like_an_undisturbed_one(
    server: Server, config: Config, undisturbed: str
) -> None:
    with server.client() as client, server.http() as http:
        low = http.post(
            "/train", json=config(server, "low", **LONG), params={"priority": "low", "preemptible": True}
        ).json()["job_id"]
        server.until_step(low, 10)
        # Stopped, the run takes no step until the request has arrived.
        server.kill_worker(low, signal.SIGSTOP)
        assert client.pause(low).status == "success"
        server.kill_worker(low, signal.SIGCONT)
        until_state(server, low, "paused")
        status = client.status(low)
        assert (status.queue_state, status.ended_at, status.attempt) == (None, None, 1)
        assert status.last_checkpoint == status.current_step
        assert not (server.root / "models" / "low").exists()
        assert client.queue_status().stats.running_count == 0
        client.resume(low)
        server.until_step(low, status.current_step + 5)
        server.kill_worker(low, signal.SIGSTOP)
        high = server.train(config(server, "high", max_steps=3, eval_steps=0), "high")
        server.kill_worker(low, signal.SIGCONT)
        # Preempted, the job returns by itself.
        assert server.until_ended(high).status == "completed"
    ended = server.until_ended(low)
    assert (ended.status, ended.attempt, ended.preemptible) == ("completed", 3, True)
    assert any(f"preempted by {high}" in line for line in server.log_lines(low))
    assert server.losses(low) == server.losses(undisturbed)
    assert_same_weights(server, "low", "undisturbed")


def test_a_run_that_is_killed_and_stopped_ends_like_an_undisturbed_one(
    server: Server, config: Config, undisturbed: str
) -> None:
    job = server.train(config(server, "interrupted", **LONG))
    server.until_step(job, 12)
    server.kill_worker(job)
    failed = until(lambda: (s := server.status(job)).status == "failed" and s, 5, "the death's being noticed")
    assert "SIGKILL" in failed.error
    assert f"/jobs/{job}/resume" in failed.error
    assert failed.last_checkpoint >= 10

    with server.client() as client:
        client.resume(job)
        server.until_step(job, failed.current_step + 5)
        answer = client.stop(job)
        assert (answer.status, answer.was_queued) == ("success", False)
        stopped = server.until_ended(job, 20)
        assert stopped.status == "stopped"
        assert stopped.current_step < LAST
        assert _is_loadable(Path(stopped.output_dir))
        again = client.stop(job)
        assert (again.status, again.was_queued) == ("warning", False)
        client.resume(job)
    ended = server.until_ended(job)
    assert (ended.status, ended.attempt, ended.error) == ("completed", 3, None)
    assert server.losses(job) == server.losses(undisturbed)
    assert_same_weights(server, "interrupted", "undisturbed")


def test_a_waiting_job_is_paused_and_resumed(server: Server, config: Config) -> None:
    with server.client() as client:
        with acting_worker(server):
            second = server.train(config(server, "held-back", max_steps=2, eval_steps=0))
            assert "is paused" in client.pause(second).message
            assert client.status(second).queue_position is None
        assert client.status(second).status == "paused"
        client.resume(second)
        ended = server.until_ended(second)
        assert (ended.status, ended.attempt) == ("completed", 1)
        assert client.pause(second).status == "warning"


@pytest.mark.long
def test_a_server_killed_over_a_pause_comes_back_to_it(new_server: NewServer, config: Config) -> None:
    server = new_server()
    job = server.train(config(server, "paused", **LONG))
    server.until_step(job, 15)
    with server.client() as client:
        client.pause(job)
    server.kill()
    server.start()
    until_state(server, job, "paused")
    with server.client() as client:
        answer = client.stop(job)
        assert "can be resumed" in answer.message
        assert client.status(job).status == "stopped"
        client.resume(job)
    assert server.until_ended(job).status == "completed"
    assert list(server.losses(job)) == list(range(1, LAST + 1))


@pytest.mark.long
def test_a_cancelled_resume_can_be_resumed(server: Server, config: Config) -> None:
    job = server.train(config(server, "twice", **LONG))
    server.until_step(job, 15)
    with server.client() as client:
        client.stop(job)
        server.until_ended(job)
        other = server.train(config(server, "other", **LONG))
        server.until_step(other, 1)
        client.resume(job)
        assert client.stop(job).was_queued
        assert client.status(job).status == "cancelled"
        client.resume(job)
        client.stop(other)
    assert server.until_ended(job).status == "completed"


def _is_loadable(adapter: Path) -> bool:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    return bool(model.peft_config) and bool(AutoTokenizer.from_pretrained(adapter).chat_template)
