"""A run on several GPUs: the worker starts one rank per GPU, watches them and ends them together.

The worker forks the ranks before any code has opened a GPU. It trains nothing itself, so that it can determine how each
rank ended even if the others hang in an incomplete collective operation. The first rank writes the event log until it
is done; an error of any rank becomes the last event of the run, written by the worker once all ranks have ended. The
ranks belong to the worker's session, hold its lock and are killed by the system when it dies. The run therefore does
not count as dead while one of them still uses a GPU.

torchrun is not used: it starts new interpreters, which import for seconds, and handles the signals that stop a run.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from setproctitle import setproctitle

from merlina import checkpoints
from merlina.hardware.host import describe_signal, oom_kills
from merlina.run_folder.event_log import EventLog, read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.events import Ended
from merlina.worker.run.stop_requests import ReceivedRequests
from merlina.worker.run.watchdog import watch

_POLL_SECONDS = 0.5
# Time in which the failed rank may report the cause after another rank has lost the connection to it.
_CAUSE_SECONDS = 10.0
# Time in which a rank that has completed its work may exit by itself.
_EXIT_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_LAST_EVENTS = ("ended", "paused")

_Outcome = Literal["done", "failed", "lost"]


@dataclass
class _Rank:
    number: int
    process: BaseProcess
    connection: Connection
    outcome: _Outcome | None = None
    message: str = ""

    def receive(self) -> None:
        """Receive the outcome; `message` stays empty if the rank died without reporting one."""
        try:
            self.outcome, self.message = self.connection.recv()
        except EOFError:
            self.outcome = "failed"


def run_in_ranks(folder: RunFolder, order: RunOrder, log: EventLog, requests: ReceivedRequests, lock: int) -> int:
    """Carry out an order in `order.num_ranks` ranks and return the exit code of the worker."""
    begin, kills_before = folder.events_file.stat().st_size, oom_kills()
    folder.rendezvous_file.unlink(missing_ok=True)
    folder.reserve()
    ranks = [_start(number, folder, order, log, requests) for number in range(order.num_ranks)]
    # Started after the forks, which do not copy threads.
    watch(folder, lock, log, lambda: _kill(ranks))
    failed = _watch(ranks, requests)
    _end(ranks)
    folder.rendezvous_file.unlink(missing_ok=True)
    folder.reserve_file.unlink(missing_ok=True)
    if failed is None or _has_last_event(folder, begin):
        return 0
    error = _describe(failed, order, folder, out_of_memory=oom_kills() > kills_before)
    step = checkpoints.survey(folder.checkpoints_dir).step
    EventLog(folder.events_file).append(Ended(state="failed", error=error, checkpoint_step=step))
    return 1


def _start(number: int, folder: RunFolder, order: RunOrder, log: EventLog, requests: ReceivedRequests) -> _Rank:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_run_rank, args=(number, os.getpid(), theirs, folder, order, log, requests)
    )
    process.start()
    # The other end closes when the rank dies, if no other process has it open.
    theirs.close()
    return _Rank(number, process, ours)


def _watch(ranks: Sequence[_Rank], requests: ReceivedRequests) -> _Rank | None:
    """Wait until the first rank is done, and return None; or until a rank fails, and return it.

    If no failed rank reports within _CAUSE_SECONDS, the rank that lost the connection to the others is returned.
    """
    give_up_at, is_stopping = math.inf, False
    while ranks[0].outcome != "done":
        failed = [rank for rank in ranks if rank.outcome == "failed"]
        lost = [rank for rank in ranks if rank.outcome == "lost"]
        if failed or (lost and time.monotonic() > give_up_at):
            return (failed or lost)[0]
        if lost and give_up_at == math.inf:
            give_up_at = time.monotonic() + _CAUSE_SECONDS
        if requests.is_set() and not is_stopping:
            is_stopping = True
            os.kill(ranks[0].process.pid or 0, signal.SIGTERM)
        pending: dict[Any, _Rank] = {rank.connection: rank for rank in ranks if rank.outcome is None}
        for connection in wait(list(pending), _POLL_SECONDS):
            pending[connection].receive()
    return None


def _end(ranks: Sequence[_Rank]) -> None:
    for rank in ranks:
        if rank.outcome == "done":
            rank.process.join(_EXIT_SECONDS)
        if not (rank.outcome == "failed" and not rank.message):
            rank.process.kill()
        rank.process.join()


def _kill(ranks: Sequence[_Rank]) -> None:
    for rank in ranks:
        rank.process.kill()
    for rank in ranks:
        rank.process.join()


def _has_last_event(folder: RunFolder, offset: int) -> bool:
    """Return whether the first rank has written the last event of the run after `offset`."""
    while True:
        found, offset = read_events(folder.events_file, offset)
        if not found or any(event.type in _LAST_EVENTS for event in found):
            return bool(found)


def _describe(rank: _Rank, order: RunOrder, folder: RunFolder, *, out_of_memory: bool) -> str:
    name = f"process {rank.number + 1} of {order.num_ranks}"
    if rank.message:
        return f"{rank.message} (in {name})" if rank.number else rank.message
    code = rank.process.exitcode or 0
    if code < 0:
        return f"{name.capitalize()} {describe_signal(-code, out_of_memory=out_of_memory)}"
    return f"{name.capitalize()} ended with exit code {code} and reported no error; its output is in {folder.log_file}"


def _run_rank(
    number: int,
    worker: int,
    connection: Connection,
    folder: RunFolder,
    order: RunOrder,
    log: EventLog,
    requests: ReceivedRequests,
) -> None:
    _die_with_parent(worker)
    setproctitle(f"merlina worker {order.job_id} {folder.path} rank {number}")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(gpus) == order.num_ranks:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number]
    if number:
        # A signal to the whole process group stops the run through its first rank alone.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send(_carry_out(number, folder, order, log, requests))


def _carry_out(
    number: int, folder: RunFolder, order: RunOrder, log: EventLog, requests: ReceivedRequests
) -> tuple[_Outcome, str]:
    from merlina.training.device import training_device
    from merlina.training.distributed.ranks import LostRankError, join_ranks
    from merlina.worker.run.reporting import EventReporter, NullChannel, redact_tokens
    from merlina.worker.run.run import describe_error, run_stages
    from merlina.worker.run.stages import Stages

    reporter = EventReporter(NullChannel(), NullChannel()) if number else EventReporter(log, requests)
    try:
        ranks = join_ranks(number, order.num_ranks, folder.rendezvous_file, training_device())
        run_stages(Stages(folder, order, reporter, ranks))
    except Exception as error:
        folder.reserve_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            sys.stderr.write(f"Process {number + 1} of {order.num_ranks}:\n{redact_tokens(traceback.format_exc())}")
            sys.stderr.flush()
        return ("lost" if isinstance(error, LostRankError) else "failed"), describe_error(error, folder)
    return "done", ""


def _die_with_parent(worker: int) -> None:
    """Have the system kill this process when the worker dies. Without prctl, the next collective operation fails."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:
        os._exit(1)
