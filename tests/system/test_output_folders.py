"""One job at a time owns an output folder, even if several run, and each job's `output_dir` is its own model's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merlina.model_placement import identity
from merlina.run_folder.event_log import EventLog
from merlina.schemas.events import Placing, Started, StateChanged
from merlina.storage import jobs
from merlina.storage.database import Database
from tests.harness import ENDED, Server, add_running_job, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]


def rank_of(model: str | None) -> int:
    """Return the LoRA rank of a model, which differs between the runs."""
    return int(json.loads((Path(model or "") / "adapter_config.json").read_text())["r"])


def add_job(server: Server, job_id: str, output_name: str) -> None:
    """A paused job in the server's database."""
    database = Database(f"sqlite:///{server.root / 'data' / 'merlina.db'}")
    row = {
        "job_id": job_id, "state": "paused", "priority": 3, "config": {}, "base_model": "m", "output_name": output_name,
        "target_dir": str(server.root / "models" / output_name), "created_at": 1.0, "updated_at": 1.0,
    }  # fmt: skip
    with database.write() as connection:
        jobs.add(connection, row)
    database.close()


def refused_by(server: Server, config: dict[str, Any]) -> str:
    with server.http() as http:
        return str(http.post("/train", json=config).json()["detail"])


@pytest.mark.long
def test_runs_for_one_folder_take_turns_while_others_run_beside_them(new_server: NewServer, config: Config) -> None:
    server = new_server(MAX_CONCURRENT_JOBS="2")
    ranks = (2, 4, 8)
    names = [server.train(config(server, "shared", max_steps=8, lora_r=rank)) for rank in ranks]
    beside = server.train(config(server, "beside", max_steps=100_000, eval_steps=0, save_steps=0))
    with server.client() as client:
        waiting = {job.job_id: job.waiting_for for job in client.queue_status().queued_jobs}
        for job_id in set(names[1:]) & set(waiting):
            assert "which saves into the same folder" in (waiting[job_id] or "") or waiting[job_id] == "a free slot"
        server.until_step(beside, 1)
        add_job(server, "job_inside", "nest/inner")
        for name, status in (("nest", 409), ("nest_2", 200)):
            with server.http() as http:
                answer = http.post("/train", params={"priority": "low"}, json=config(server, name, max_steps=1))
            assert answer.status_code == status, answer.text
        assert "job_inside" in refused_by(server, config(server, "nest"))

        def overlapping() -> bool:
            running = [job for job in client.history().jobs if job.job_id in names and job.status not in ENDED]
            assert sum(job.status != "queued" for job in running) <= 1, running
            return not running

        until(overlapping, 150, "the end of all three")
        found = {job.job_id: job for job in client.history().jobs}
        assert [found[name].status for name in names] == ["completed"] * 3
        # Each has the model that it trained, wherever that is now.
        assert [rank_of(found[name].output_dir) for name in names] == list(ranks)
        assert found[names[2]].output_dir == str(server.root / "models" / "shared")
        assert server.status(beside).status == "training"
        client.stop(beside)


def test_a_run_ends_though_its_finished_model_cannot_be_moved_to_its_folder(
    new_server: NewServer, tmp_path: Path
) -> None:
    run, models = add_running_job(tmp_path, "job_1"), tmp_path / "models"
    older, staged = models / "o", models / ".o.job_1.partial"
    for path in (run.path, older, staged):
        path.mkdir(parents=True)
    log = EventLog(run.events_file)
    log.append(Started(attempt=1, pid=1, process="1 1 1"))
    log.append(StateChanged(state="saving"))
    placing = {"folder": str(older), "staged": str(staged), "identity": identity(staged)}
    # The older model cannot be moved there, which fails after the move was announced in the log.
    log.append(Placing(**placing, kept_as=str(tmp_path / "missing" / "o"), step=3))
    log.close()
    server = new_server()
    assert server.until_ended("job_1", 20).status == "failed"
    assert older.is_dir()
