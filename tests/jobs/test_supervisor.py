"""The supervisor's cycles, with a fake executor and a clock that the tests set."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from merlina.jobs.broadcast import Broadcast
from merlina.jobs.moves import Moves
from merlina.processes import ProcessId
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import Checkpointed, Ended, Event, Paused, Progress, Started, StateChanged
from merlina.storage.jobs import JobRecord
from tests.harness import until
from tests.jobs.backend import GRACE_SECONDS, Backend

STARTED = Started(attempt=1, pid=1)
TRAINING = (STARTED, StateChanged(state="loading_model"), StateChanged(state="training"))


def test_a_queued_job_starts_with_its_order_and_memory_is_freed_for_it(backend: Backend) -> None:
    job, worker = backend.start()
    assert worker.order is not None
    assert (worker.order.job_id, worker.order.attempt, worker.order.resume) == (job, 1, False)
    assert worker.order.after_seq == 1
    assert backend.record(job).state == "initializing"
    assert backend.freed_for == [job]


def test_the_next_pass_comes_soon_while_a_job_runs_and_not_at_all_while_there_is_none(backend: Backend) -> None:
    assert backend.supervisor.run_cycle() is None
    backend.submit()
    assert backend.supervisor.run_cycle() == 0.1
    backend.submit("second")
    assert backend.supervisor.plan().waiting == {backend.record("job_19700112_134640_2").job_id: "a free slot"}


def test_events_reach_database_and_subscribers_and_a_completed_job_is_cleaned_up(backend: Backend) -> None:
    job, worker = backend.start()
    folder = backend.folder(job)
    for kept in (folder.checkpoints_dir, folder.tokens_dir):
        kept.mkdir()
    (folder.tokens_dir / "ids").touch()
    worker.append(*TRAINING, Progress(step=3, total_steps=9))
    backend.supervisor.run_cycle()
    latest = backend.broadcast.latest(job)
    assert latest == backend.record(job)
    assert latest is not None
    assert (latest.state, latest.step) == ("training", 3)
    assert folder.secrets_file.exists()
    worker.exit(StateChanged(state="saving"), Ended(state="completed", output_dir="/m/o"))
    backend.supervisor.run_cycle()
    assert (backend.record(job).state, backend.record(job).progress) == ("completed", 1.0)
    assert not folder.secrets_file.exists()
    assert not folder.checkpoints_dir.exists()
    assert not folder.tokens_dir.exists()


def test_checkpoints_of_a_completed_job_are_removed_only_after_its_worker_has_ended(backend: Backend) -> None:
    job, worker = backend.start()
    backend.folder(job).checkpoints_dir.mkdir()
    worker.append(*TRAINING, StateChanged(state="saving"), Ended(state="completed"))
    backend.supervisor.run_cycle()
    assert backend.folder(job).checkpoints_dir.exists()
    worker.exit()
    assert backend.supervisor.run_cycle() is None
    assert not backend.folder(job).checkpoints_dir.exists()


def test_a_job_found_completed_at_its_workers_death_is_cleaned_up_at_once(backend: Backend) -> None:
    job, worker = backend.start()

    class EndsUnseen(type(backend.executor)):  # type: ignore[misc]
        """The worker writes its last event after its log was read and before it is found dead."""

        def is_alive(self, folder: RunFolder, known: ProcessId | None = None) -> bool:
            if worker.is_alive:
                worker.exit(*TRAINING, StateChanged(state="saving"), Ended(state="completed"))
            return False

    backend.executor.__class__ = EndsUnseen
    backend.run_cycles(2)
    assert backend.record(job).state == "completed"
    assert not backend.folder(job).secrets_file.exists()


@pytest.mark.parametrize(
    ("events", "stage"), [((), "While initializing"), ((*TRAINING, Progress(step=3, total_steps=9)), "At step 3 of 9")]
)
def test_a_dead_worker_fails_its_job_with_stage_cause_and_next_steps(
    backend: Backend, events: Sequence[Event], stage: str
) -> None:
    job, worker = backend.start()
    worker.exit(*events)
    backend.run_cycles(1)
    record = backend.record(job)
    assert record.state == "failed"
    assert record.error == (
        f"{stage} the worker process was killed by SIGKILL; "
        f"it had no checkpoint yet; POST /jobs/{job}/resume starts again at step 1"
    )


def test_a_run_without_its_log_ends_in_the_database(backend: Backend) -> None:
    job, worker = backend.start()
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    worker.is_alive = False
    backend.folder(job).events_file.unlink()
    backend.run_cycles(1)
    assert (backend.record(job).state, backend.record(job).log_offset) == ("failed", 0)
    assert "was removed or truncated" in (backend.record(job).error or "")


@pytest.mark.parametrize("kind", ["stop", "pause"])
def test_a_worker_that_does_not_complete_a_request_is_killed_after_its_grace(backend: Backend, kind: str) -> None:
    job, worker = backend.start()
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    (backend.commands.stop if kind == "stop" else backend.commands.pause)(job)
    backend.run_cycles(GRACE_SECONDS)
    assert (worker.requests, worker.kills) == ([kind], 0)
    backend.run_cycles(3)
    assert worker.kills == 1
    assert backend.record(job).state == ("stopped" if kind == "stop" else "paused")
    assert f"did not {kind} within 30 s and was killed" in backend.folder(job).events_file.read_text()


def test_time_in_which_the_server_was_suspended_is_not_part_of_the_grace(backend: Backend) -> None:
    job, worker = backend.start()
    backend.commands.stop(job)
    backend.supervisor.run_cycle()
    for _ in range(5):
        backend.clock.seconds += 3600
        backend.supervisor.run_cycle()
    assert worker.kills == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_worker_that_did_not_receive_its_request_is_not_killed_for_it(backend: Backend, number: int) -> None:
    job, worker = backend.start()
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    backend.executor.delivery_error = OSError(number, os.strerror(number))
    backend.commands.pause(job)
    backend.run_cycles(2 * GRACE_SECONDS)
    assert worker.kills == 0
    backend.executor.delivery_error = None
    backend.run_cycles(GRACE_SECONDS)
    assert (worker.requests, worker.kills) == (["pause"], 0)
    backend.run_cycles(2)
    assert worker.kills == 1


def test_the_death_of_a_worker_that_cannot_be_reached_is_noticed(backend: Backend) -> None:
    job, worker = backend.start()
    backend.executor.delivery_error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    backend.commands.stop(job)
    worker.is_alive = False
    backend.run_cycles(1)
    assert backend.record(job).state == "stopped"


def test_a_detached_worker_has_ten_seconds_to_end_itself(backend: Backend) -> None:
    _, worker = backend.start()
    worker.is_detached = True
    backend.run_cycles(11)
    assert worker.kills == 0
    backend.run_cycles(1)
    assert worker.kills == 1


def test_a_paused_job_continues_with_its_next_attempt_and_numbers(backend: Backend) -> None:
    job, worker = backend.start()
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    backend.commands.pause(job)
    worker.exit(Checkpointed(step=4, path="x"), Paused(reason="a pause was requested", checkpoint_step=4))
    backend.supervisor.run_cycle()
    record = backend.record(job)
    assert (record.state, record.last_checkpoint, record.last_seq) == ("paused", 4, 6)
    assert backend.moves.change(record, {"state": "queued", "attempt": 2, "pause_requested_at": None}) is not None
    backend.supervisor.run_cycle()
    order = backend.executor.workers[job].order
    assert order is not None
    assert (order.attempt, order.resume, order.resume_step, order.after_seq) == (2, True, 4, 8)


def test_a_low_priority_job_is_preempted_and_returns_by_itself(backend: Backend) -> None:
    low, worker = backend.start("low", "low", preemptible=True)
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    high = backend.submit("high", "high")
    backend.supervisor.run_cycle()
    assert backend.supervisor.plan().waiting == {high: f"{low} to pause"}
    assert worker.requests == ["pause"]
    worker.exit(Paused(reason="preempted", checkpoint_step=None))
    backend.supervisor.run_cycle()
    assert (backend.record(high).state, backend.record(low).state) == ("initializing", "queued")
    backend.executor.workers[high].exit(Ended(state="failed", error="why"))
    backend.supervisor.run_cycle()
    backend.supervisor.run_cycle()
    assert (backend.record(low).state, backend.record(low).attempt) == ("initializing", 2)


def test_a_stop_that_arrives_while_a_job_pauses_ends_it(backend: Backend) -> None:
    job, worker = backend.start()
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    backend.commands.pause(job)
    backend.commands.stop(job)
    worker.exit(Paused(reason="a pause was requested", checkpoint_step=None))
    backend.supervisor.run_cycle()
    assert backend.record(job).state == "stopped"


def test_a_failed_launch_fails_the_job_with_the_reason(backend: Backend) -> None:
    job = backend.submit()
    backend.executor.launch_error = OSError(errno.EMFILE, "Too many open files")
    backend.supervisor.run_cycle()
    assert backend.record(job).state == "failed"
    assert backend.record(job).error == "The worker could not be started: [Errno 24] Too many open files"


def test_a_job_that_can_neither_be_started_nor_logged_ends_in_the_database(backend: Backend) -> None:
    job = backend.submit()
    backend.executor.launch_error = OSError(errno.EIO, "Input/output error")
    backend.folder(job).lock_file.mkdir()
    backend.supervisor.run_cycle()
    assert backend.record(job).state == "failed"


def test_a_start_committed_by_a_server_that_was_killed_is_launched_by_the_next_one(backend: Backend) -> None:
    job = backend.submit()
    assert backend.moves.change(backend.record(job), {"state": "initializing"}) is not None
    supervisor = backend.new_supervisor()
    supervisor.start()
    until(lambda: job in backend.executor.workers, 10, "the start")
    supervisor.close()


def test_a_deleted_job_goes_once_its_worker_has_ended(backend: Backend) -> None:
    job, worker = backend.start()
    backend.commands.delete(job)
    backend.run_cycles(2)
    assert worker.requests == ["stop"]
    assert backend.record(job).deleting
    worker.exit(Ended(state="stopped"))
    backend.run_cycles(1)
    assert not backend.folder(job).path.exists()
    assert backend.broadcast.latest(job) is None


def test_one_job_that_cannot_be_attended_to_does_not_hold_up_the_others(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.supervisor = backend.new_supervisor(max_concurrent=2)
    first, second = backend.submit("first"), backend.submit("second")
    backend.supervisor.run_cycle()
    backend.folder(first).events_file.mkdir()
    backend.executor.workers[second].exit(Ended(state="failed", error="why"))
    for _ in range(3):
        backend.supervisor.run_cycle()
    assert backend.record(second).state == "failed"
    assert caplog.text.count(f"{first} could not be updated") == 1


class BusyBroadcast(Broadcast):
    """Lets the run end and start again between the commit of a stop and its delivery."""

    moves: Moves

    def publish(self, record: JobRecord, events: Sequence[Event] = ()) -> None:
        super().publish(record, events)
        if record.state == "training" and record.stop_requested_at is not None:
            ended = self.moves.change(record, {"state": "stopped"})
            assert ended is not None
            queued = self.moves.change(ended, {"state": "queued", "attempt": 2, "stop_requested_at": None})
            assert queued is not None
            assert self.moves.change(queued, {"state": "initializing"}) is not None


def test_a_late_stop_does_not_reach_the_next_attempt(tmp_path: Path, empty_database: Path) -> None:
    broadcast = BusyBroadcast()
    backend = Backend(tmp_path, empty_database, broadcast)
    broadcast.moves = backend.moves
    job, worker = backend.start()
    worker.append(*TRAINING)
    backend.supervisor.run_cycle()
    backend.commands.stop(job)
    assert (backend.record(job).state, backend.record(job).attempt) == ("initializing", 2)
    assert worker.requests == []
    backend.database.close()
