from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from merlina.errors import InvalidRequestError
from merlina.jobs.run_marks import write_mark
from merlina.schemas.messages import CompletedMessage
from merlina.schemas.training.config import TrainingConfig
from tests.cli.test_commands import command
from tests.harness import Server, acting_worker, damaged_model, pairs_file, training_config, until

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def done(server: Server, tiny_model: Path) -> str:
    """A completed job that had tokens."""
    dataset = pairs_file(server.root / "done.jsonl")
    config = training_config(
        tiny_model, dataset, "done", max_steps=6, hf_token="hf_very_secret", wandb_key="w_very_secret"
    )
    job_id = server.train(config)
    assert server.until_ended(job_id).status == "completed"
    return job_id


def test_a_job_from_submission_to_model(server: Server, done: str) -> None:
    assert re.fullmatch(r"job_\d{8}_\d{6}(_\d+)?", done)
    with server.http() as http:
        status = http.get(f"/status/{done}").json()
        assert (status["status"], status["progress"], status["current_step"], status["total_steps"]) == (
            "completed", 1.0, 6, 6,
        )  # fmt: skip
        assert (status["error"], status["queue_position"], status["queue_state"]) == (None, None, None)
        metrics = http.get(f"/jobs/{done}/metrics").json()
        assert [row["step"] for row in metrics["metrics"]] == list(range(7))
        assert metrics["count"] == 7
        first, last = metrics["metrics"][0], metrics["metrics"][-1]
        assert first["loss"] is None
        assert first["eval_loss"] > last["eval_loss"]
        assert last["learning_rate"] is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", last["timestamp"])
        for name in ("grad_norm", "nll_loss", "log_odds", "reward_accuracy", "reward_margin", "tokens_per_second"):
            assert isinstance(last[name], float), name
        assert http.get("/jobs").json()[done] == {
            "status": "completed", "progress": 1.0, "stop_requested": False, "pause_requested": False,
        }  # fmt: skip
    model = Path(status["output_dir"])
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "merlina.json", "README.md"} <= {
        path.name for path in model.iterdir()
    }
    # Removed after the event "ended", by which the job is completed.
    until(lambda: not server.folder(done).checkpoints_dir.exists(), 5, "the removal of the checkpoints")


def test_the_duration_is_estimated_from_an_earlier_run_with_the_model(
    server: Server, done: str, config: Config
) -> None:
    body = config(server, "foreseen", max_steps=50)
    with server.http() as http:
        known = http.post("/validate", json=body).json()["results"]["time"]
        unknown = http.post("/validate", json={**body, "base_model": f"{body['base_model']}/."}).json()["results"][
            "time"
        ]
    assert (known["steps"], unknown["steps"]) == (50, 50)
    assert server.status(known["earlier_run"]).base_model == body["base_model"]
    assert known["seconds"] > 0
    assert unknown["seconds"] > 0
    assert unknown["earlier_run"] is None


def test_metrics_can_be_selected_by_step(server: Server, done: str) -> None:
    with server.client() as client:
        assert [row.step for row in client.metrics(done, since_step=2, limit=2).metrics] == [2, 3]
        assert [row.step for row in client.metrics(done, since_step=1, until_step=3).metrics] == [1, 2, 3]
        thinned = client.metrics(done, max_points=3)
    assert [row.step for row in thinned.metrics] == [0, 3, 6]
    assert (thinned.count, thinned.total) == (3, 7)


def test_the_timeline_has_each_state_in_order_with_its_time(server: Server, done: str) -> None:
    with server.client() as client:
        states = client.timeline(done).states
    way = ["queued", "initializing", "loading_model", "loading_dataset", "training", "saving", "completed"]
    assert [entry.state for entry in states] == way
    times = [datetime.fromisoformat(entry.since) for entry in states]
    assert times == sorted(times)


def test_a_job_that_never_ran_was_cancelled_while_it_waited(server: Server, config: Config) -> None:
    with acting_worker(server), server.client() as client:
        job_id = server.train(config(server, "way"))
        client.stop(job_id)
        assert [entry.state for entry in client.timeline(job_id).states] == ["queued", "cancelled"]


def test_the_log_accounts_for_every_row(server: Server, done: str) -> None:
    with server.client() as client:
        lines = [line.message for line in client.logs(done).logs]
    assert "Format of the rows: Standard columns (detected)" in lines
    assert "40 rows read, all of them usable" in lines
    assert "36 pairs to train on, 4 held out for evaluation" in lines


def test_no_token_is_anywhere_but_in_the_runs_secret_file(server: Server, done: str) -> None:
    with server.client() as client:
        assert "hf_token" in client.config(done)
        assert client.config(done)["hf_token"] is None
    holders = [
        path
        for path in server.root.rglob("*")
        if path.is_file() and any(secret in path.read_bytes() for secret in (b"hf_very_secret", b"w_very_secret"))
    ]
    assert holders == []  # the run is completed, so that even its secret file is gone
    assert not server.folder(done).secrets_file.exists()


def test_three_submissions_in_one_second_are_three_jobs(server: Server, config: Config) -> None:
    body = config(server, "three", max_steps=1)
    with acting_worker(server), server.http() as http, ThreadPoolExecutor(3) as pool:
        responses = [pool.submit(http.post, "/train", json=body).result() for _ in range(3)]
        ids = [response.json()["job_id"] for response in responses]
        assert len(set(ids)) == 3
        assert all(response.json()["status"] == "queued" for response in responses)
        for job_id in ids:
            http.post(f"/jobs/{job_id}/stop")


def test_a_high_priority_job_starts_before_waiting_ones(server: Server, config: Config) -> None:
    with acting_worker(server) as worker, server.client() as client:
        running = worker.job_id
        low, normal, high = (server.train(config(server, name), name) for name in ("low", "normal", "high"))
        assert client.status(running).queue_state == "running"
        queue = client.queue_status()
        waiting = [(job.job_id, job.priority, job.position) for job in queue.queued_jobs]
        assert waiting == [(high, 5, 1), (normal, 3, 2), (low, 1, 3)]
        assert [job.job_id for job in queue.running_jobs] == [running]
        assert queue.stats.model_dump() == {
            "queued_count": 3, "running_count": 1, "paused_count": 0, "max_concurrent": 1, "available_slots": 0,
        }  # fmt: skip
        assert queue.queued_jobs[0].waiting_for == "a free slot"
        assert [job.job_id for job in client.queue_jobs().queued] == [high, normal, low]
        status = client.status(low)
        assert (status.queue_position, status.queue_state) == (3, "queued")
        for job_id in (low, normal, high):
            client.stop(job_id)


def test_the_history_has_pages(server: Server, done: str) -> None:
    with server.http() as http:
        everything = http.get("/jobs/history", params={"limit": 1000}).json()
        assert everything["count"] == everything["total"] == len(everything["jobs"])
        created = [job["created_at"] for job in everything["jobs"]]
        assert created == sorted(created, reverse=True)
        second = http.get("/jobs/history", params={"limit": 1, "offset": 1}).json()
        assert second["jobs"] == everything["jobs"][1:2]
        assert (second["count"], second["total"]) == (1, everything["total"])
        finished = http.get("/jobs/history", params={"status": "completed"}).json()
        assert done in [job["job_id"] for job in finished["jobs"]]
        for bad in ({"status": "done"}, {"limit": 0}, {"limit": "x"}, {"offset": -1}):
            assert http.get("/jobs/history", params=bad).status_code == 400, bad


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/status/{}"), ("GET", "/jobs/{}/metrics"), ("GET", "/jobs/{}/config"), ("GET", "/jobs/{}/logs"),
        ("POST", "/jobs/{}/stop"), ("POST", "/jobs/{}/resume"), ("POST", "/jobs/{}/retry"), ("DELETE", "/jobs/{}"),
    ],
)  # fmt: skip
def test_an_unknown_job_is_404_everywhere(server: Server, method: str, path: str) -> None:
    with server.http() as http:
        response = http.request(method, path.format("job_20000101_000000"))
    assert (response.status_code, response.json()) == (404, {"detail": "Job not found"})


def test_a_configuration_that_cannot_run_is_refused_with_every_reason(server: Server, config: Config) -> None:
    before = sorted((server.root / "data" / "runs").iterdir())
    body = {**config(server, "bad", gpu_ids=[7]), "base_model": "/nowhere"}
    body["dataset"]["source"]["file_path"] = str(server.root / "none.jsonl")
    with server.http() as http:
        response = http.post("/train", json=body)
        assert response.status_code == 400
        detail = response.json()["detail"]
        assert detail["message"] == "Training configuration validation failed"
        assert [error.split(":")[0] for error in detail["errors"]] == ["gpu_ids", "base_model", "dataset"]
        validation = http.post("/validate", json=body).json()
        assert (validation["valid"], validation["results"]["errors"]) == (False, detail["errors"])
        checks = validation["results"]["checks"]
        assert {"gpu_available", "vram_sufficient", "disk_space_ok", "model_accessible", "dataset_valid"} <= set(checks)
        assert checks["disk_space_ok"]
        assert http.post("/train", json=body, params={"priority": "urgent"}).status_code == 400
        outside = config(server, "bad")
        outside["dataset"]["source"]["file_path"] = "/etc/passwd"
        assert http.post("/train", json=outside).status_code == 403
    assert sorted((server.root / "data" / "runs").iterdir()) == before


@pytest.mark.parametrize(
    "odd", ["~nobody/x", "a\0b", "/" + "a" * 4000, "a" * 4000, "../" * 30 + "etc", "ünï/cödé", " "]
)
def test_unusual_names_are_refused(server: Server, config: Config, odd: str) -> None:
    with server.http() as http:
        response = http.post("/train", json={**config(server, "odd"), "base_model": odd})
        assert response.status_code == 400, response.text
        assert "base_model" in response.json()["detail"]["errors"][0]
        body = config(server, "odd")
        body["dataset"]["source"]["file_path"] = odd
        assert http.post("/train", json=body).status_code in (400, 403)
        assert http.post("/dataset/preview", json=body["dataset"]).status_code in (400, 403, 404)


def test_the_queue_survives_a_kill_and_an_orphaned_folder_is_removed(server: Server, config: Config) -> None:
    with acting_worker(server) as worker:
        low, high = (server.train(config(server, priority), priority) for priority in ("low", "high"))
        server.kill()
        left = server.folder("job_20260101_000000")
        left.path.mkdir()
        write_mark(left, {"job_id": left.path.name, "config": {}, "target_dir": "/m/o", "created_at": 1.0})
        left.write_secrets({"hf_token": "hf_x"})
        server.start()
        until(lambda: not left.path.exists(), what="its removal")
        assert left.path.name not in server.history()
        assert [server.status(job).queue_position for job in (high, low)] == [1, 2]
        assert server.status(worker.job_id).status == "training"
        with server.client() as client:
            for job in (low, high):
                client.stop(job)


@dataclass(frozen=True)
class Moved:
    """A job that found a foreign folder and whose model a retry has moved, the retry, and the first one's weights."""

    first: str
    second: str
    weights: bytes


@pytest.fixture(scope="module")
def moved(server: Server, tiny_model: Path) -> Moved:
    dataset = pairs_file(server.root / "moved.jsonl")
    foreign = server.root / "models" / "again"
    foreign.mkdir(parents=True)
    (foreign / "notes").touch()
    first = server.train(training_config(tiny_model, dataset, "again", max_steps=1, eval_steps=0))
    assert server.until_ended(first).status == "completed"
    weights = (server.root / "models" / "again" / "adapter_model.safetensors").read_bytes()
    with server.client() as client:
        second = client.retry(first).job_id
    assert server.until_ended(second).status == "completed"
    return Moved(first, second, weights)


def test_an_existing_model_is_moved_beside_the_new_one(server: Server, moved: Moved) -> None:
    first, second = moved.first, moved.second
    with server.client() as client:
        assert second != first
        assert client.config(second) == client.config(first)
    models = server.root / "models"
    kept = models / f"again.before-{second}"
    assert (kept / "adapter_model.safetensors").read_bytes() == moved.weights
    with server.client() as client:
        listed = {job.job_id: job.output_dir for job in client.history(limit=1000).jobs}
    for job_id, folder in ((first, kept), (second, models / "again")):
        assert server.status(job_id).output_dir == listed[job_id] == str(folder)


def test_a_foreign_folder_is_kept(server: Server, moved: Moved) -> None:
    kept = server.root / "models" / f"again.before-{moved.first}"
    assert [path.name for path in kept.iterdir()] == ["notes"]


def test_only_a_run_with_a_checkpoint_can_be_resumed(server: Server, done: str) -> None:
    with server.http() as http:
        response = http.post(f"/jobs/{done}/resume")
    assert response.status_code == 409
    assert "is completed; only a failed, stopped, cancelled or paused job" in response.json()["detail"]


def test_contradicting_fields_are_reported_by_field(server: Server, config: Config) -> None:
    body = config(server, "contradicts", max_length=64, max_prompt_length=64)
    source = {"source_type": "upload"}
    with server.http() as http:
        (error,) = http.post("/validate", json=body).json()["detail"]["errors"]
        (nested,) = http.post("/train", json={**body, "dataset": {"source": source}}).json()["detail"]["errors"]
        (alone,) = http.post("/dataset/columns", json={"source": source}).json()["detail"]["errors"]
    assert error.startswith("max_prompt_length: 64 must be below max_length (64)")
    assert nested == "dataset.source.dataset_id: required by source_type 'upload'"
    assert alone == "source.dataset_id: required by source_type 'upload'"


def test_the_same_finding_of_two_checks_is_reported_once(server: Server, config: Config, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, server.root / "own-code"))
    own = {
        "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.M"}},
        "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    }
    for name, changes in own.items():
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**content, **changes}))
    with server.client() as client:
        results = client.validate(TrainingConfig.model_validate(config(server, "own", base_model=str(model)))).results
    (error,) = results.errors
    assert "contains custom code" in error
    checks = results.checks.model_dump()
    assert (checks["model_supported"], checks["tokenizer_ready"]) == (False, False)


def test_a_failed_run_states_its_cause(server: Server, config: Config, tiny_model: Path, tmp_path: Path) -> None:
    damaged = damaged_model(tiny_model, tmp_path / "damaged")
    failed = server.until_ended(server.train(config(server, "fails", base_model=str(damaged))))
    assert failed.status == "failed"
    assert failed.error is not None
    assert f"The files of {str(damaged)!r} are damaged" in failed.error
    assert not (server.root / "models" / "fails").exists()


def test_a_job_without_its_data_is_neither_resumed_nor_retried(server: Server, config: Config, tmp_path: Path) -> None:
    dataset = pairs_file(server.root / "goes.jsonl")
    body = config(server, "data_goes", max_steps=400)
    body["dataset"]["source"]["file_path"] = str(dataset)
    job_id = server.train(body)
    with server.client() as client:
        server.until_step(job_id, 2)
        client.stop(job_id)
        stopped = server.until_ended(job_id)
        dataset.unlink()
        for ask in (client.resume, client.retry):
            with pytest.raises(InvalidRequestError, match=r"goes\.jsonl no longer exists; upload it again"):
                ask(job_id)
        last = client.metrics(job_id).metrics[-1].step
    assert stopped.current_step == last


def test_a_retry_is_checked_like_the_first_submission(server: Server, config: Config, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, server.root / "goes"))
    with acting_worker(server), server.client() as client:
        job_id = server.train(config(server, "goes", base_model=str(model)))
        client.stop(job_id)
        shutil.rmtree(model)
        with pytest.raises(InvalidRequestError, match="base_model"):
            client.retry(job_id)


def test_the_loading_code_is_that_of_the_model_card(server: Server, done: str) -> None:
    with server.http() as http:
        response = http.get(f"/jobs/{done}/loading-code")
    assert response.status_code == 200
    code = response.json()["code"]
    assert f"```python\n{code}\n```" in (Path(response.json()["output_dir"]) / "README.md").read_text()
    compile(code, "card", "exec")


def test_the_loading_code_of_a_model_that_a_later_run_moved_loads_that_model(server: Server, moved: Moved) -> None:
    job_ids = (moved.first, moved.second)
    first, second = (server.status(job_id).output_dir for job_id in job_ids)
    assert first != second
    with server.http() as http:
        codes = [http.get(f"/jobs/{job_id}/loading-code").json()["code"] for job_id in job_ids]
    assert repr(first) in codes[0]
    assert repr(second) not in codes[0]
    assert repr(second) in codes[1]


def test_a_removed_model_is_forgotten(server: Server, moved: Moved) -> None:
    folder = server.root / "models" / "again"
    with server.client() as client:
        shutil.rmtree(folder)
        third = client.retry(moved.second).job_id
        assert server.until_ended(third).output_dir == str(folder)
        assert client.status(moved.second).output_dir is None
        *_, last = client.watch(moved.second)
    assert isinstance(last, CompletedMessage)
    assert last.output_dir is None
    assert "completed: its model no longer exists" in command("watch", moved.second, url=server.url).stdout


def test_an_ended_job_is_deleted_completely(server: Server, moved: Moved) -> None:
    """The last test, because others use this job."""
    job_id = moved.first
    model = Path(server.status(job_id).output_dir or "")
    with server.client() as client:
        assert client.delete(job_id).status == "success"
        assert job_id not in client.jobs()
        until(lambda: not server.folder(job_id).path.exists(), 5, "the run folder's removal")
    assert model.exists()
