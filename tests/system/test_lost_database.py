"""The database is lost, restored or replaced, and others use the same folders: no file of others is deleted."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merlina.jobs.run_marks import write_mark
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import Ended, Metrics, Started
from tests.harness import Server, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]
STEPS = 60


def files_of_others(runs: Path) -> list[Path]:
    """Return files that other programs and people keep among the runs, some with names like ours."""
    files = [
        runs / "tensorboard" / "events.out.tfevents.1",
        runs / "job_20200101_000000" / "notes.txt",
        runs / "job_20200102_000000" / "job.json",
        runs / "checkpoints" / "checkpoint-1" / "model.bin",
    ]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("theirs")
    named_like_a_job = runs / "job_20200103_000000"
    named_like_a_job.write_text("theirs")
    outside = runs.parent / "outside"
    (outside / "checkpoints").mkdir(parents=True)
    (outside / "checkpoints" / "checkpoint-9").write_text("theirs")
    (runs / "job_20200104_000000").symlink_to(outside)
    return [*files, named_like_a_job, outside / "checkpoints" / "checkpoint-9"]


def left_behind(runs: Path, job_id: str, mark: str) -> RunFolder:
    """The folder of a job during whose submission or deletion a server was killed."""
    folder = RunFolder(runs / job_id)
    folder.path.mkdir()
    write_mark(folder, {"job_id": job_id, "config": {}, "target_dir": "/m/o", "created_at": 1.0})
    folder.write_secrets({"hf_token": "hf_secret"})
    if mark == "deleted":
        folder.pending_file.unlink()
        folder.deleted_file.touch()
    return folder


def upload_pairs(server: Server, name: str) -> str:
    content = (server.root / "pairs.jsonl").read_bytes()
    with server.http() as http:
        return str(http.post("/dataset/upload-file", files={"file": (name, content)}).json()["dataset_id"])


def test_jobs_of_a_lost_database_are_known_by_their_folders(tmp_path: Path, new_server: NewServer) -> None:
    runs = tmp_path / "data" / "runs"
    runs.mkdir(parents=True)
    foreign = files_of_others(runs)
    done, waiting, abandoned, deleted = (
        left_behind(runs, f"job_2020010{day}_000000", "pending") for day in range(5, 9)
    )
    done.pending_file.unlink()
    waiting.pending_file.unlink()
    deleted.pending_file.unlink()
    deleted.deleted_file.touch()
    # The ranks' rendezvous in earlier versions.
    (deleted.path / "meeting").touch()
    log = EventLog(done.events_file)
    log.append(Started(attempt=1, pid=1, process="1 1 1"))
    for step in (1, 2):
        log.append(Metrics(step=step, metrics={"loss": 0.5}))
    log.append(Ended(state="completed", output_dir=None, final_metrics={}))
    log.close()
    server = new_server()
    until(lambda: set(server.history()) == {done.path.name, waiting.path.name}, what="the jobs' return")
    assert server.status(done.path.name).status == "completed"
    assert list(server.losses(done.path.name)) == [1, 2]
    # Only the lost database knew whether it had been cancelled, so it waits for a resume.
    assert server.status(waiting.path.name).status == "paused"
    assert waiting.read_secrets() == {"hf_token": "hf_secret"}
    assert all(file.read_text() == "theirs" for file in foreign)
    assert not abandoned.path.exists()
    assert not deleted.path.exists()


@pytest.mark.long
def test_jobs_are_listed_again_from_their_folders_and_files_of_others_stay(
    new_server: NewServer, config: Config
) -> None:
    server = new_server()
    runs = server.root / "data" / "runs"
    foreign = files_of_others(runs)
    first = server.train(config(server, "same", max_steps=2))
    assert server.until_ended(first).status == "completed"
    done = server.train(config(server, "same", max_steps=3))
    assert server.until_ended(done).status == "completed"
    running = server.train(config(server, "running", max_steps=STEPS, save_steps=20))
    waiting = server.train({**config(server, "waiting", max_steps=2), "hf_token": "hf_secret"}, "high")
    shutil.copytree(runs / done, runs / f"{done}-copy")
    upload, deleted = (upload_pairs(server, name) for name in ("mine.jsonl", "deleted.jsonl"))
    with server.http() as http:
        assert http.delete(f"/dataset/uploads/{deleted}").status_code == 200
        listed = http.get("/dataset/uploads").json()
    theirs = server.root / "data" / "uploads" / "upload_20200101_000000_0123abcd" / "rows.jsonl"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    server.until_step(running, 5)
    server.kill()
    abandoned = [
        left_behind(runs, "job_20200105_000000", "pending"),
        left_behind(runs, "job_20200106_000000", "deleted"),
    ]
    for file in (server.root / "data").glob("merlina.db*"):
        file.unlink()
    server.start()

    until(lambda: waiting in server.history(), what="the jobs' return")
    assert set(server.history()) == {first, done, running, waiting}
    with server.client() as client:
        by_id = {job.job_id: job for job in client.history().jobs}
        models = server.root / "models"
        assert (by_id[done].status, by_id[done].output_dir) == ("completed", str(models / "same"))
        assert by_id[first].output_dir == str(models / f"same.before-{done}")
        assert list(server.losses(done)) == [1, 2, 3]
        # Only the lost database knew whether it had been cancelled, so it waits for a resume.
        assert by_id[waiting].status == "paused"
        client.resume(waiting)
        assert server.folder(waiting).read_secrets() == {"hf_token": "hf_secret"}
        assert server.until_ended(running).status == "completed"
        assert list(server.losses(running)) == list(range(1, STEPS + 1))
        assert server.until_ended(waiting).status == "completed"
        assert all(file.read_text() == "theirs" for file in [*foreign, theirs])
        with server.http() as http:
            assert http.get("/dataset/uploads").json() == listed
        assert [entry["dataset_id"] for entry in listed["datasets"]] == [upload]
        assert (runs / f"{done}-copy" / "events.jsonl").exists()
        assert not any(folder.path.exists() for folder in abandoned)
        log = (server.root / "server.log").read_text()
        assert "4 jobs were not in the database" in log
        assert "are not run folders and were left unchanged" in log

        mine = server.folder(done).path / "my notes.txt"
        mine.write_text("mine")
        (server.folder(first).path / "checkpoints").mkdir(exist_ok=True)
        in_checkpoints = server.folder(first).path / "checkpoints" / "best"
        in_checkpoints.symlink_to(models)
        client.clear()
        until(lambda: not server.folder(running).path.exists() and not server.history(), what="the deletion")
    until(lambda: [path.name for path in server.folder(done).path.iterdir()] == [mine.name], what="its files' removal")
    assert in_checkpoints.is_symlink()
    assert (models / "same" / "adapter_model.safetensors").exists()
    server.kill()
    # Killed while it deleted two uploads: one is still in the database, the other is not.
    uploads = server.root / "data" / "uploads"
    (uploads / upload).rename(uploads / f".deleted_{upload}")
    (uploads / deleted).mkdir()
    (uploads / deleted / "rows.jsonl").write_text("{}")
    (uploads / deleted).rename(uploads / f".deleted_{deleted}")
    server.start()
    assert server.history() == []
    assert mine.exists()
    assert {path.name for path in uploads.iterdir()} == {upload, theirs.parent.name}
    assert (uploads / upload / "rows.jsonl").exists()


@pytest.mark.long
def test_a_restored_backup_is_brought_up_to_date_from_the_event_logs(
    new_server: NewServer, config: Config, tmp_path: Path
) -> None:
    server = new_server()
    database = server.root / "data" / "merlina.db"
    with server.client() as client:
        blocking = server.train(config(server, "blocking", max_steps=100_000, eval_steps=0, save_steps=0))
        server.until_step(blocking, 1)
        first, again = (server.train(config(server, name, max_steps=2)) for name in ("same", "again"))
        with (
            contextlib.closing(sqlite3.connect(database)) as now,
            contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as backup,
        ):
            now.backup(backup)
        client.stop(blocking)
        assert server.until_ended(first).status == "completed"
        second = server.train(config(server, "same", max_steps=3))
        assert server.until_ended(again).status == "completed"
        assert server.until_ended(second).status == "completed"
        before = {job.job_id: (job.status, job.output_dir) for job in client.history().jobs}
    server.kill()
    for file in database.parent.glob("merlina.db*"):
        file.unlink()
    shutil.copy(tmp_path / "backup.db", database)
    # As left by a server that was killed during a recovery, and by an earlier version, which used another name.
    unfinished = [database.parent / "runs" / name for name in (".recovering", ".rebuilding")]
    for file, job in zip(unfinished, (again, first), strict=True):
        file.write_text(job)
    server.start()

    def listed() -> dict[str, tuple[str, str | None]]:
        with server.client() as client:
            return {job.job_id: (job.status, job.output_dir) for job in client.history().jobs}

    until(lambda: listed() == before, 20, "the state before the backup was restored")
    assert list(server.losses(first)) == [1, 2]
    assert server.folder(first).events_file.read_text().count('"type":"started"') == 1
    assert not any(file.exists() for file in unfinished)
    assert "had continued since the database was written" in (server.root / "server.log").read_text()
