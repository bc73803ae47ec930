from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from merlina.storage import jobs, metrics, uploads
from merlina.storage.database import Database
from merlina.storage.metrics import MetricRecord
from merlina.storage.tables import metadata
from merlina.storage.uploads import UploadRecord


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    yield database
    database.close()


def add(database: Database, job_id: str, **values: object) -> jobs.JobRecord:
    row = {
        "job_id": job_id, "state": "queued", "priority": 3, "config": {"seed": 1}, "base_model": "m",
        "output_name": "o", "target_dir": "/m/o", "created_at": 1.0, "updated_at": 1.0, **values,
    }  # fmt: skip
    with database.write() as connection:
        return jobs.add(connection, row)


def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.migrate()  # once more changes nothing


def test_the_journal_is_a_write_ahead_log(database: Database) -> None:
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_the_queue_goes_by_priority_then_age(database: Database) -> None:
    for job_id, priority in (("a", 3), ("b", 1), ("c", 5), ("d", 3), ("e", 5)):
        add(database, job_id, priority=priority)
    add(database, "r", state="training")
    with database.read() as connection:
        waiting = jobs.queued(connection)
        assert [record.job_id for record in waiting] == ["c", "e", "a", "d", "b"]
        assert [jobs.queue_position(connection, record) for record in waiting] == [1, 2, 3, 4, 5]
        assert jobs.counts(connection) == jobs.Counts(total=6, queued=5, running=1, paused=0, occupied_slots=1)
        assert [record.job_id for record in jobs.running(connection)] == ["r"]


def test_a_deleted_job_occupies_its_slot_until_its_worker_has_ended(database: Database) -> None:
    for state in ("queued", "training", "paused", "completed"):
        add(database, state, state=state, deleting=True)
    with database.read() as connection:
        assert jobs.counts(connection) == jobs.Counts(total=0, queued=0, running=0, paused=0, occupied_slots=1)


def test_a_change_is_made_only_if_the_job_is_unchanged_since_it_was_read(database: Database) -> None:
    before = add(database, "a")
    with database.write() as connection:
        changed = jobs.change(connection, before, {"state": "initializing", "command_count": 1})
        assert changed is not None
        assert changed.state == "initializing"
        assert jobs.change(connection, before, {"state": "cancelled"}) is None
        for outdated in ({"command_count": 0}, {"attempt": 2}, {"state": "training"}):
            assert jobs.change(connection, replace(changed, **outdated), {"deleting": True}) is None


def test_of_many_threads_exactly_one_takes_a_job(database: Database) -> None:
    record = add(database, "a")
    taken: list[bool] = []

    def take() -> None:
        with database.write() as connection:
            taken.append(jobs.change(connection, record, {"state": "initializing"}) is not None)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 15 + [True]


def test_a_job_id_is_given_once_and_its_number_never_again(database: Database) -> None:
    first = add(database, "a")
    with pytest.raises(IntegrityError):
        add(database, "a")
    with database.write() as connection:
        jobs.remove(connection, "a")
    assert add(database, "a").number > first.number


def test_a_job_takes_its_metrics_with_it(database: Database) -> None:
    record = add(database, "a")
    with database.write() as connection:
        metrics.add_rows(connection, record.number, [MetricRecord(1, 1.0, {"loss": 1.0})])
        assert metrics.count(connection) == 1
        jobs.remove(connection, "a")
        assert metrics.count(connection) == 0


def test_training_and_evaluation_of_a_step_share_a_row(database: Database) -> None:
    number = add(database, "a").number
    with database.write() as connection:
        metrics.add_rows(
            connection, number, [MetricRecord(1, 1.0, {"loss": 1.0}), MetricRecord(1, 2.0, {"eval_loss": 2.0})]
        )
        metrics.add_rows(
            connection, number, [MetricRecord(1, 3.0, {"eval_margin": None}), MetricRecord(2, 3.0, {"loss": 0.5})]
        )
        found = metrics.rows(connection, number)
    assert found == [
        MetricRecord(1, 3.0, {"loss": 1.0, "eval_loss": 2.0, "eval_margin": None}),
        MetricRecord(2, 3.0, {"loss": 0.5}),
    ]


def test_a_resume_forgets_the_steps_it_takes_again(database: Database) -> None:
    number = add(database, "a").number
    with database.write() as connection:
        metrics.add_rows(connection, number, [MetricRecord(step, 1.0, {"loss": 1.0}) for step in range(10)])
        metrics.delete_after(connection, number, 6)
        assert [row.step for row in metrics.rows(connection, number)] == list(range(7))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(count=st.integers(0, 60), points=st.integers(1, 20))
def test_a_thinned_chart_keeps_both_ends_and_its_order(database: Database, count: int, points: int) -> None:
    with database.write() as connection:
        for job_id in jobs.summaries(connection):
            jobs.remove(connection, job_id)
    number = add(database, "a").number
    with database.write() as connection:
        metrics.add_rows(connection, number, [MetricRecord(step, 1.0, {}) for step in range(count)])
        steps = [row.step for row in metrics.rows(connection, number, max_points=points)]
    assert len(steps) == min(count, points)
    assert steps == sorted(set(steps))
    if steps:
        assert steps[-1] == count - 1
        assert points == 1 or steps[0] == 0


def test_a_thinned_chart_of_few_steps_far_apart_keeps_both_ends(database: Database) -> None:
    number = add(database, "a").number
    steps = [0, 3, *range(100, 200), 1_000_000]
    with database.write() as connection:
        metrics.add_rows(connection, number, [MetricRecord(step, 1.0, {}) for step in steps])
        found = [row.step for row in metrics.rows(connection, number, max_points=50)]
        assert [row.step for row in metrics.rows(connection, number, max_points=1)] == [1_000_000]
        assert len(metrics.rows(connection, number, max_points=len(steps))) == len(steps)
    assert len(found) <= 50
    assert found == sorted(set(found) & set(steps))
    assert (found[0], found[-1]) == (0, 1_000_000)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    count=st.integers(0, 200),
    every=st.integers(1, 60),
    points=st.integers(1, 60),
    part=st.tuples(*[st.integers(0, 200)] * 2),
)
def test_a_thinned_chart_keeps_evaluations_and_is_no_longer_than_asked_for(
    database: Database, count: int, every: int, points: int, part: tuple[int, int]
) -> None:
    with database.write() as connection:
        for job_id in jobs.summaries(connection):
            jobs.remove(connection, job_id)
    number = add(database, "a").number
    evaluated = set(range(0, count, every))
    with database.write() as connection:
        metrics.add_rows(connection, number, [MetricRecord(step, 1.0, {"loss": 1.0}) for step in range(count)])
        metrics.add_rows(connection, number, [MetricRecord(step, 1.0, {"eval_loss": 1.0}) for step in evaluated])
        first, last = sorted(part)
        rows = metrics.rows(connection, number, since_step=first, until_step=last, max_points=points)
    steps, within = [row.step for row in rows], set(range(first, min(count, last + 1)))
    assert steps == sorted(within & set(steps))
    assert len(steps) <= points
    found = {row.step for row in rows if "eval_loss" in row.metrics}
    evaluation_points = max(0, points - 2) // 2
    assert len(found) >= min(evaluation_points, len(evaluated & within))
    if points > 1 and within:
        assert {min(within), max(within)} <= set(steps)


def test_rows_from_before_evaluations_were_marked_are_marked_by_the_migration(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate("0004")
    number = 1
    with database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (number, job_id, state, priority, config, base_model, output_name, target_dir, "
            f"created_at, updated_at) VALUES ({number}, 'a', 'failed', 3, '{{}}', 'm', 'o', 't', 1, 1)"
        )
        for step in range(100):
            values = '{"loss": 1, "eval_loss": 2}' if step == 7 else '{"loss": 1}'
            connection.exec_driver_sql(f"INSERT INTO metrics VALUES ({number}, {step}, 1.0, '{values}')")
    database.migrate()
    with database.read() as connection:
        assert 7 in [row.step for row in metrics.rows(connection, number, max_points=5)]
    database.close()


def test_metric_rows_are_counted_through_joins_resumes_and_deletions(database: Database) -> None:
    first, second = add(database, "a").number, add(database, "b").number
    with database.write() as connection:
        for number in (first, second):
            metrics.add_rows(connection, number, [MetricRecord(step, 1.0, {"loss": 1.0}) for step in range(10)])
        metrics.add_rows(connection, first, [MetricRecord(step, 2.0, {"eval_loss": 1.0}) for step in (9, 10, 11)])
        assert metrics.count(connection) == 22
        metrics.delete_after(connection, first, 4)
        assert metrics.count(connection) == 15
        jobs.remove(connection, "b")
        assert metrics.count(connection) == 5


def test_rows_from_before_they_were_counted_are_counted_by_the_migration(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate("0001")
    with database.write() as connection:
        for number, rows in ((1, 3), (2, 0), (3, 4)):
            connection.exec_driver_sql(
                "INSERT INTO jobs (number, job_id, state, priority, config, base_model, output_name, target_dir, "
                f"created_at, updated_at) VALUES ({number}, 'j{number}', 'failed', 3, '{{}}', 'm', 'o', 't', 1, 1)"
            )
            for step in range(rows):
                connection.exec_driver_sql(f"INSERT INTO metrics VALUES ({number}, {step}, 1.0, '{{}}')")
    database.migrate()
    with database.read() as connection:
        assert metrics.count(connection) == 7
        assert len(metrics.rows(connection, 3)) == 4
    database.close()


def test_the_revision_changes_with_each_write_and_with_no_read(database: Database) -> None:
    before = database.write_count
    with database.read() as connection:
        jobs.summaries(connection)
    assert database.write_count == before
    add(database, "a")
    assert database.write_count != before


def test_metrics_from_a_step_on_and_no_more_than_asked_for(database: Database) -> None:
    number = add(database, "a").number
    with database.write() as connection:
        metrics.add_rows(connection, number, [MetricRecord(step, 1.0, {}) for step in range(10)])
        assert [row.step for row in metrics.rows(connection, number, since_step=4, limit=3)] == [4, 5, 6]


def test_uploads_are_listed_newest_first(database: Database) -> None:
    with database.write() as connection:
        for number in range(3):
            uploads.add(connection, UploadRecord(f"u{number}", "x.jsonl", "jsonl", 1, 2, float(number)))
        assert [upload.dataset_id for upload in uploads.newest_first(connection)] == ["u2", "u1", "u0"]
        assert uploads.get(connection, "u1") == UploadRecord("u1", "x.jsonl", "jsonl", 1, 2, 1.0)
        assert uploads.remove(connection, "u1")
        assert not uploads.remove(connection, "u1")
