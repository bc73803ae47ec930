from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from merlina.errors import ConflictError
from merlina.jobs.output_folders import correct_moved_model, owner_among, refuse_nested_jobs, refuse_nested_on_disk
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import Moved, Placed, Placing
from merlina.storage import jobs, tables
from merlina.storage.database import Database
from tests.jobs.records import job


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    yield database
    database.close()


def add(database: Database, job_id: str, target: Path, **values: Any) -> jobs.JobRecord:
    row = {
        "job_id": job_id, "state": "queued", "priority": 3, "config": {}, "base_model": "m", "output_name": "o",
        "target_dir": str(target), "created_at": 1.0, "updated_at": 1.0, **values,
    }  # fmt: skip
    with database.write() as connection:
        return jobs.add(connection, row)


def output_of(database: Database, job_id: str) -> str | None:
    with database.read() as connection:
        found = jobs.get(connection, job_id)
    assert found is not None
    return found.output_dir


@pytest.mark.parametrize(
    ("other", "overlaps"),
    [("a", True), ("a/inner", True), (".", True), ("ab", False), ("b", False), ("link/a", True)],
)
def test_folders_overlap_if_they_are_the_same_or_one_is_inside_the_other(
    tmp_path: Path, other: str, overlaps: bool
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    here, there = job(target_dir=str(tmp_path / "a")), job(job_id="other", target_dir=str(tmp_path / other))
    assert (owner_among([there], here) is not None) == overlaps


@pytest.mark.parametrize(("name", "other"), [("nest", "nest/inner"), ("nest/inner", "nest")])
def test_a_model_inside_another_is_refused_while_the_other_has_one_or_may_save_one(
    database: Database, tmp_path: Path, name: str, other: str
) -> None:
    record = add(database, "job_1", tmp_path / other, state="training")
    add(database, "job_2", tmp_path / "nested", state="training")
    add(database, "job_3", tmp_path / "nest_and_more", state="training")
    target = str(tmp_path / name)
    changes: list[tuple[dict[str, Any], bool]] = [
        ({"state": "training"}, True),
        ({"state": "failed"}, False),
        ({"state": "completed", "output_dir": record.target_dir}, True),
        ({"deleting": True}, False),
    ]
    for change, refused in changes:
        with database.write() as connection:
            connection.execute(update(tables.jobs).where(tables.jobs.c.job_id == "job_1").values(change))
        with database.read() as connection:
            if refused:
                with pytest.raises(ConflictError, match="of job_1"):
                    refuse_nested_jobs(connection, target)
                refuse_nested_jobs(connection, target, "job_1")
            else:
                refuse_nested_jobs(connection, target)


def test_models_on_the_disk_are_not_built_into_or_around(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "merlina.json").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "notes").touch()
    (tmp_path / "empty").mkdir()
    for name, complaint in (
        ("org", "contains the model"), ("model/inner", "is the folder of a model"), ("notes/inner", "is a file"),
    ):  # fmt: skip
        with pytest.raises(ConflictError, match=complaint):
            refuse_nested_on_disk(tmp_path, tmp_path / name)
    for name in ("org/model", "org/other", "model", "notes", "empty", "new", "new/inner"):
        refuse_nested_on_disk(tmp_path, tmp_path / name)


def test_models_inside_a_folder_that_is_moved_are_found_in_its_new_place(database: Database, tmp_path: Path) -> None:
    for name in ("nest", "nest/inner", "nested", "nest_2"):
        add(database, name, tmp_path / name, state="completed", output_dir=str(tmp_path / name), ended_at=1.0)
    with database.write() as connection:
        jobs.move_model(connection, str(tmp_path / "nest"), str(tmp_path / "nest.before-x"))
    assert output_of(database, "nest") == str(tmp_path / "nest.before-x")
    assert output_of(database, "nest/inner") == str(tmp_path / "nest.before-x" / "inner")
    assert output_of(database, "nested") == str(tmp_path / "nested")
    assert output_of(database, "nest_2") == str(tmp_path / "nest_2")


@pytest.mark.parametrize("interrupted", [True, False])
@pytest.mark.parametrize("moved", [False, True])
def test_only_a_worker_killed_before_an_announced_move_leaves_the_older_model_in_place(
    database: Database, tmp_path: Path, *, moved: bool, interrupted: bool
) -> None:
    target, kept = tmp_path / "o", tmp_path / "o.before-late"
    (kept if moved else target).mkdir()
    add(database, "early", target, state="completed", output_dir=str(target), ended_at=1.0)
    run = RunFolder(tmp_path / "late")
    run.path.mkdir()
    log = EventLog(run.events_file)
    moving = {"folder": str(target), "kept_as": str(kept)}
    log.append(Placing(**moving, staged=str(tmp_path / ".o"), identity="1:1", step=1))
    log.append(Moved(**moving))
    if not interrupted:
        log.append(Placed(folder=str(target)))
    log.close()
    with database.write() as connection:
        jobs.move_model(connection, str(target), str(kept))  # as announced
        correct_moved_model(connection, run)
    assert output_of(database, "early") == str(target if interrupted and not moved else kept)
