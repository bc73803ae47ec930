"""A run in several processes, one for each of its GPUs: started, watched and ended together.

The worker forks them before anything has touched a GPU and trains nothing itself, so that it can tell how each of them
ended even where the others hang in a sum that will never be complete. The first rank writes the event log until it is
done; whatever goes wrong, in whichever rank, becomes the run's last event here, once none of them is left. They are in
the worker's session, hold its lock as it does, and are killed by the system when it dies: as long as one is left on a
GPU, nobody takes the run for dead.

torch's own launcher would start them by new interpreters, which import for seconds, and takes the signals by which a
run is stopped for its own.
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
from merlina.runs import EventLog, RunFolder, RunOrder, read_events
from merlina.schemas.events import Ended
from merlina.worker.run.stop_requests import StopRequest
from merlina.worker.run.watchdog import watch

_LOOK_SECONDS = 0.5
# For the rank that broke down to say so, where another has only noticed that it is gone.
_CAUSE_SECONDS = 10.0
# For a rank that has done its work to end by itself.
_END_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_LAST_EVENTS = ("ended", "paused")

_How = Literal["done", "failed", "lost"]


@dataclass
class _Rank:
    number: int
    process: BaseProcess
    connection: Connection
    how: _How | None = None
    words: str = ""

    def listen(self) -> None:
        """Takes in how it ended; where it died without a word, `words` stays empty."""
        try:
            self.how, self.words = self.connection.recv()
        except EOFError:
            self.how = "failed"


def run_in_ranks(folder: RunFolder, order: RunOrder, log: EventLog, stop: StopRequest, lock: int) -> int:
    """Runs an order in `order.processes` processes to its end and returns the worker's exit code."""
    begin, kills_before = folder.events_file.stat().st_size, oom_kills()
    folder.rendezvous_file.unlink(missing_ok=True)
    folder.reserve()
    ranks = [_start(number, folder, order, log, stop) for number in range(order.processes)]
    # Not before the forks, which copy no thread.
    watch(folder, lock, log, lambda: _kill(ranks))
    failed = _watch(ranks, stop)
    _end(ranks)
    folder.rendezvous_file.unlink(missing_ok=True)
    folder.reserve_file.unlink(missing_ok=True)
    if failed is None or _has_last_event(folder, begin):
        return 0
    error = _in_words(failed, order, folder, out_of_memory=oom_kills() > kills_before)
    step = checkpoints.survey(folder.checkpoints_dir).step
    EventLog(folder.events_file).append(Ended(state="failed", error=error, checkpoint_step=step))
    return 1


def _start(number: int, folder: RunFolder, order: RunOrder, log: EventLog, stop: StopRequest) -> _Rank:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_be_rank, args=(number, os.getpid(), theirs, folder, order, log, stop)
    )
    process.start()
    # The other end closes when the rank dies, if nobody else has it open.
    theirs.close()
    return _Rank(number, process, ours)


def _watch(ranks: Sequence[_Rank], stop: StopRequest) -> _Rank | None:
    """Until the first rank is done: None; or until one has failed: that one, or at least one that lost the others."""
    give_up_at, told_to_stop = math.inf, False
    while ranks[0].how != "done":
        failed = [rank for rank in ranks if rank.how == "failed"]
        lost = [rank for rank in ranks if rank.how == "lost"]
        if failed or (lost and time.monotonic() > give_up_at):
            return (failed or lost)[0]
        if lost and give_up_at == math.inf:
            give_up_at = time.monotonic() + _CAUSE_SECONDS
        if stop.is_set() and not told_to_stop:
            told_to_stop = True
            os.kill(ranks[0].process.pid or 0, signal.SIGTERM)
        unheard: dict[Any, _Rank] = {rank.connection: rank for rank in ranks if rank.how is None}
        for connection in wait(list(unheard), _LOOK_SECONDS):
            unheard[connection].listen()
    return None


def _end(ranks: Sequence[_Rank]) -> None:
    for rank in ranks:
        if rank.how == "done":
            rank.process.join(_END_SECONDS)
        if not (rank.how == "failed" and not rank.words):
            rank.process.kill()
        rank.process.join()


def _kill(ranks: Sequence[_Rank]) -> None:
    for rank in ranks:
        rank.process.kill()
    for rank in ranks:
        rank.process.join()


def _has_last_event(folder: RunFolder, offset: int) -> bool:
    """Whether the first rank has said after `offset` how the run ended."""
    while True:
        found, offset = read_events(folder.events_file, offset)
        if not found or any(event.type in _LAST_EVENTS for event in found):
            return bool(found)


def _in_words(rank: _Rank, order: RunOrder, folder: RunFolder, *, out_of_memory: bool) -> str:
    which = f"process {rank.number + 1} of {order.processes}"
    if rank.words:
        return f"{rank.words} (in {which})" if rank.number else rank.words
    code = rank.process.exitcode or 0
    if code < 0:
        return f"{which.capitalize()} {describe_signal(-code, out_of_memory=out_of_memory)}"
    return f"{which.capitalize()} ended with exit code {code} without a word; its output is in {folder.log_file}"


def _be_rank(
    number: int,
    worker: int,
    connection: Connection,
    folder: RunFolder,
    order: RunOrder,
    log: EventLog,
    stop: StopRequest,
) -> None:
    _die_with(worker)
    setproctitle(f"merlina worker {order.job_id} {folder.path} rank {number}")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(gpus) == order.processes:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number]
    if number:
        # What ends a whole group of processes stops the run by its first rank alone.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send(_outcome(number, folder, order, log, stop))


def _outcome(number: int, folder: RunFolder, order: RunOrder, log: EventLog, stop: StopRequest) -> tuple[_How, str]:
    from merlina.training.distributed.ranks import LostRankError, join_ranks
    from merlina.training.models.loading import training_device
    from merlina.worker.run.reporting import EventReporter, Silence, without_tokens
    from merlina.worker.run.run import in_words, run_stages
    from merlina.worker.run.stages import Stages

    if number:
        order = order.model_copy(update={"config": order.config.model_copy(update={"use_wandb": False})})
    reporter = EventReporter(Silence(), Silence()) if number else EventReporter(log, stop)
    try:
        ranks = join_ranks(number, order.processes, folder.rendezvous_file, training_device())
        run_stages(Stages(folder, order, reporter, ranks))
    except Exception as error:
        folder.reserve_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            sys.stderr.write(f"Process {number + 1} of {order.processes}:\n{without_tokens(traceback.format_exc())}")
            sys.stderr.flush()
        return ("lost" if isinstance(error, LostRankError) else "failed"), in_words(error, folder)
    return "done", ""


def _die_with(worker: int) -> None:
    """The system kills this process when the worker dies; where it can't, the first sum without the others fails."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:
        os._exit(1)
