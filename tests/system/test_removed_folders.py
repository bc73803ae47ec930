"""A run's lock, log or folder is removed by hand: its worker ends, the reason is reported, and the next job waits."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from merlina.run_folder.folder import RunFolder
from tests.harness import Server, acting_worker, has_ended, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]
# Far more steps than a test waits for.
ENDLESS = {"max_steps": 100_000, "save_steps": 0, "eval_steps": 0}


def remove_lock(folder: RunFolder) -> None:
    folder.lock_file.unlink()


def replace_lock(folder: RunFolder) -> None:
    folder.lock_file.unlink()
    folder.lock_file.touch()


def remove_log(folder: RunFolder) -> None:
    folder.events_file.unlink()


def remove_folder(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)


LOCK_REASON = "its lock {folder}/lock was removed or replaced"
LOG_REASON = "its event log {folder}/events.jsonl was removed or truncated"
FOLDER_REASON = "its run folder {folder} was removed"
Removals = list[tuple[Callable[[RunFolder], None], str]]


@pytest.mark.parametrize(
    "removals",
    [
        pytest.param(
            [(remove_lock, LOCK_REASON), (remove_folder, "its run folder {folder} was removed")], id="removed"
        ),
        pytest.param([(replace_lock, LOCK_REASON), (remove_log, LOG_REASON)], id="replaced", marks=pytest.mark.long),
    ],
)
def test_a_worker_without_its_folder_ends_itself_and_the_next_starts_after_it(
    server: Server, config: Config, removals: Removals
) -> None:
    jobs = [server.train(config(server, f"detached-{number}", **ENDLESS)) for number in range(len(removals))]
    last = server.train(config(server, "after-them", max_steps=1))
    for job, waiting, (remove, reason) in zip(jobs, [*jobs[1:], last], removals, strict=True):
        server.until_step(job, 2)
        folder = server.folder(job)
        identity = folder.worker()
        assert identity is not None
        worker = psutil.Process(identity.pid)
        assert server.status(waiting).status == "queued"
        remove(folder)
        until(lambda waiting=waiting: server.status(waiting).status != "queued", what="the next job's start")
        # It ends right after the event that says so, which is all that the next job waits for.
        until(lambda worker=worker: has_ended(worker), 10, "the worker's end")
        ended = server.status(job)
        assert ended.status == "failed"
        assert reason.format(folder=folder.path) in (ended.error or "")
    assert server.until_ended(last).status == "completed"
    with server.client() as client:
        for job in jobs:
            client.delete(job)
        until(lambda: not {*jobs} & {*server.history()}, what="their deletion")


@pytest.mark.long
def test_a_worker_that_cannot_end_itself_is_known_to_a_new_server_and_killed(
    new_server: NewServer, config: Config
) -> None:
    server = new_server()
    job = server.train(config(server, "frozen", **ENDLESS))
    waiting = server.train(config(server, "after-it", max_steps=1))
    server.until_step(job, 2)
    identity = server.folder(job).worker()
    assert identity is not None
    worker = psutil.Process(identity.pid)
    server.kill()
    worker.send_signal(signal.SIGSTOP)
    shutil.rmtree(server.folder(job).path)
    server.start()
    assert server.status(job).status == "training"
    assert server.status(waiting).status == "queued"
    until(lambda: server.status(waiting).status != "queued", what="the next job's start")
    assert has_ended(worker)
    assert server.status(job).status == "failed"
    assert "was removed" in (server.status(job).error or "")


def test_unusable_run_folders_do_not_delay_other_jobs(server: Server, config: Config) -> None:
    names = ("undeletable", "unmarkable", "unstartable")
    with acting_worker(server), server.client() as client:
        undeletable, unmarkable, unstartable = (server.train(config(server, name, max_steps=1)) for name in names)
        for job in (undeletable, unmarkable, unstartable):
            client.pause(job)
        # Neither can be opened, under any user.
        server.folder(undeletable).lock_file.mkdir()
        server.folder(unstartable).lock_file.mkdir()
        server.folder(unmarkable).deleted_file.symlink_to("deleted")
        client.delete(undeletable)
        client.delete(unmarkable)
        client.resume(unstartable)
        last = server.train(config(server, "last", max_steps=1))
    assert server.until_ended(last).status == "completed"
    ended = server.status(unstartable)
    assert ended.status == "failed"
    assert "could not be started" in (ended.error or "")
    assert not server.folder(unmarkable).path.exists()
    server.folder(unstartable).lock_file.rmdir()
    server.folder(undeletable).lock_file.rmdir()
    until(lambda: not server.folder(undeletable).path.exists(), what="the deletion, once it is possible")
