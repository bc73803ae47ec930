"""Commands on jobs, with a fake executor in place of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merlina.errors import ConflictError, InvalidRequestError, NotFoundError, StartOverError
from merlina.schemas.events import Checkpointed, Ended, Paused, Started, StateChanged
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord
from tests.jobs.backend import Backend

TRAINING = (Started(attempt=1, pid=1), StateChanged(state="training"))


def failed(backend: Backend, name: str = "model") -> str:
    job, worker = backend.start(name)
    worker.exit(*TRAINING, Ended(state="failed", error="why"))
    backend.supervisor.run_cycle()
    return job


def test_a_submitted_job_is_queued_with_its_tokens_outside_the_database(backend: Backend) -> None:
    job = backend.submit()
    record, folder = backend.record(job), backend.folder(job)
    assert (record.state, record.created_at, record.job_id) == ("queued", 1_000_000.0, "job_19700112_134640")
    assert "hf_secret" not in str(record.config)
    assert folder.read_secrets() == {"hf_token": "hf_secret"}
    assert not folder.pending_file.exists()
    assert backend.wakes == 1


def test_jobs_of_the_same_second_have_ids_of_their_own(backend: Backend) -> None:
    assert [backend.submit(name) for name in "abc"][1:] == ["job_19700112_134640_2", "job_19700112_134640_3"]


def test_nothing_remains_of_a_job_that_was_refused(backend: Backend) -> None:
    backend.submit("outer/inner", push_to_hub=True)
    with pytest.raises(ConflictError, match="one inside the other"):
        backend.submit("outer")
    assert len(list(backend.runs_dir.iterdir())) == 1
    backend.dataset.unlink()
    with pytest.raises(InvalidRequestError):
        backend.submit("other")
    assert len(list(backend.runs_dir.iterdir())) == 1


def test_a_queued_job_is_cancelled_and_loses_its_tokens(backend: Backend) -> None:
    job = backend.submit()
    record, before = backend.commands.stop(job)
    assert (before, record.state, record.ended_at) == ("queued", "cancelled", 1_000_000.0)
    assert not backend.folder(job).secrets_file.exists()


def test_a_running_job_is_asked_to_stop_once(backend: Backend) -> None:
    job, worker = backend.start()
    backend.commands.stop(job)
    backend.clock.seconds += 5
    record, _ = backend.commands.stop(job)
    assert (record.state, record.stop_requested_at) == ("initializing", 1_000_000.0)
    assert set(worker.requests) == {"stop"}


def test_an_ended_job_is_not_changed_by_a_stop(backend: Backend) -> None:
    job = failed(backend)
    before = backend.record(job)
    assert backend.commands.stop(job) == (before, "failed")


def test_a_queued_job_is_held_back_and_queued_again(backend: Backend) -> None:
    job = backend.submit()
    record, has_changed = backend.commands.pause(job)
    assert (record.state, has_changed) == ("paused", True)
    backend.supervisor.run_cycle()
    assert backend.executor.workers == {}
    queued, resumption = backend.commands.resume(job)
    assert (queued.state, queued.attempt, resumption.step) == ("queued", 1, 0)


def test_a_pause_after_a_stop_changes_nothing(backend: Backend) -> None:
    job, worker = backend.start()
    backend.commands.stop(job)
    assert backend.commands.pause(job)[1] is False
    assert set(worker.requests) == {"stop"}


def test_a_failed_job_is_resumed_as_its_next_attempt_and_old_requests_are_withdrawn(backend: Backend) -> None:
    job, worker = backend.start()
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    backend.commands.stop(job)
    worker.exit(Ended(state="failed", error="why"))
    backend.supervisor.run_cycle()
    record, _ = backend.commands.resume(job)
    assert (record.state, record.attempt, record.error, record.stop_requested_at) == ("queued", 2, None, None)
    assert not backend.folder(job).stop_file.exists()


@pytest.mark.parametrize("state", ["queued", "initializing"])
def test_a_job_that_waits_or_runs_cannot_be_resumed(backend: Backend, state: str) -> None:
    job = backend.submit()
    if state == "initializing":
        backend.supervisor.run_cycle()
    with pytest.raises(ConflictError, match=f"is {state}; only a failed, stopped, cancelled or paused job"):
        backend.commands.resume(job)


def test_a_job_cancelled_before_it_ran_is_not_resumed(backend: Backend) -> None:
    job = backend.submit()
    backend.commands.stop(job)
    with pytest.raises(InvalidRequestError, match=f"POST /jobs/{job}/retry"):
        backend.commands.resume(job)


def test_a_job_without_its_checkpoint_starts_over_only_by_force(backend: Backend) -> None:
    job, worker = backend.start()
    worker.append(*TRAINING, Checkpointed(step=4, path="x"))
    backend.supervisor.run_cycle()
    backend.commands.pause(job)
    worker.exit(Paused(reason="a pause was requested", checkpoint_step=4))
    backend.supervisor.run_cycle()
    with pytest.raises(StartOverError, match="that of step 4 is gone"):
        backend.commands.resume(job)
    assert backend.record(job).state == "paused"
    record, resumption = backend.commands.resume(job, force=True)
    assert (record.last_checkpoint, resumption.starts_over) == (None, True)
    assert backend.folder(job).start_over_file.exists()
    backend.commands.stop(job)
    assert not backend.folder(job).start_over_file.exists()


def test_a_retry_has_configuration_priority_and_tokens_of_the_job(backend: Backend) -> None:
    job = backend.submit(priority="low", preemptible=True)
    config, priority, preemptible = backend.commands.submission(job)
    assert config.hf_token is not None
    assert (config.hf_token.get_secret_value(), priority, preemptible) == ("hf_secret", "low", True)


def test_of_two_commands_decided_at_the_same_time_one_is_refused(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = backend.submit()
    read = backend.record(job)
    backend.commands.pause(job)
    monkeypatch.setattr(type(backend.commands), "find", lambda self, job_id: read)
    with pytest.raises(ConflictError, match="changed by another request at the same time; it is paused now"):
        backend.commands.stop(job)


def test_all_jobs_are_deleted_with_their_files(backend: Backend) -> None:
    for name in "abc":
        backend.submit(name)
    assert backend.commands.clear() == 3
    with pytest.raises(NotFoundError):
        backend.commands.find("job_19700112_134640")
    backend.supervisor.run_cycle()
    assert list(backend.runs_dir.iterdir()) == []
    with backend.database.read() as connection:
        assert jobs.all_ids(connection) == set()


def test_the_id_of_a_job_that_is_deleted_in_the_second_of_its_submission_is_not_given_again(backend: Backend) -> None:
    first = backend.submit("first")
    backend.commands.delete(first)
    backend.supervisor.run_cycle()
    assert not backend.folder(first).path.exists()
    assert backend.submit("second") != first
    with pytest.raises(NotFoundError):
        backend.commands.find(first)


@pytest.mark.parametrize("command", ["stop", "pause", "delete", "resume", "config", "submission"])
def test_a_command_on_no_job_is_refused(backend: Backend, command: str) -> None:
    with pytest.raises(NotFoundError, match="Job not found"):
        getattr(backend.commands, command)("job_none")


def test_a_damaged_run_folder_is_restored_by_a_resume(backend: Backend) -> None:
    job = failed(backend)

    def remove(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    remove(backend.folder(job).path)
    record: JobRecord = backend.commands.resume(job)[0]
    assert (record.state, record.log_offset) == ("queued", 0)
    assert backend.folder(job).mark_file.exists()


def test_a_full_disk_keeps_a_stop_in_the_database_until_it_can_be_delivered(backend: Backend) -> None:
    job, worker = backend.start()
    error: Any = OSError(28, "No space left on device")
    backend.executor.delivery_error = error
    backend.commands.stop(job)
    assert (backend.record(job).stop_requested_at, worker.requests) == (1_000_000.0, [])
    backend.executor.delivery_error = None
    backend.supervisor.run_cycle()
    assert worker.requests == ["stop"]
