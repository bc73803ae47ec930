"""The caller of the chat process: one model of one job, loaded on demand, let go when idle or when a run needs room."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from merlina.errors import BusyError, ConflictError, HelperError
from merlina.executors.fork_server import ForkServer, child_environment, shown_gpus
from merlina.executors.idle_timeout import IdleTimer
from merlina.executors.pipe_process import PipeProcess, as_error

# Each waiting call holds one of the server's 40 request threads.
_MOST_WAITING = 8
_LOOK_SECONDS = 0.1
# By which a model is told from others; the process need not know.
_NAMES = ("job_id", "attempt")

State = Literal["empty", "loading", "ready", "answering"]


@dataclass(frozen=True)
class Claim:
    """The memory that a model takes: on a GPU, by index, or in RAM (None)."""

    gpu: int | None
    needed_mb: int


@dataclass(frozen=True)
class ChatOrder:
    """Which model is to be loaded: what this attempt of the job has saved.

    `config` is a TrainingConfig as JSON; `token` is for the base's files on the Hub.
    """

    job_id: str
    attempt: int
    model_dir: str
    config: dict[str, Any] = field(repr=False)
    with_base: bool
    trust_remote_code: bool
    token: str | None = field(repr=False)


@dataclass(frozen=True)
class Admission:
    """`plan` returns what a model would claim; `admit` raises InsufficientMemoryError, unless `forced`.

    `admit` is called once more when the claim can be seen by whoever starts runs: so of two that want the same memory
    at the same moment, at least one sees the other.
    """

    plan: Callable[[], Claim]
    admit: Callable[[Claim], None]
    forced: bool = False

    def check(self, claim: Claim) -> None:
        if not self.forced:
            self.admit(claim)


@dataclass(frozen=True)
class Status:
    """What is loaded, and whether that was `forced`. `idle_until` is of time.monotonic()."""

    state: State
    order: ChatOrder | None = None
    claim: Claim | None = None
    forced: bool = False
    memory_mb: int | None = None
    idle_until: float | None = None


class ChatProcess:
    """A process of `merlina.worker.chat`. Calls come from any thread and wait for each other, except `release`.

    The output of its libraries goes to `log_file`.
    """

    def __init__(self, idle_seconds: float, log_file: Path, fork_server: ForkServer | None = None) -> None:
        self._idle = IdleTimer(idle_seconds, self._let_go)
        self._log_file = log_file
        self._fork_server = fork_server
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(_MOST_WAITING)
        self._numbers = itertools.count(1)
        self._process: PipeProcess | None = None
        self._status = Status("empty")
        self._releases = 0
        self._releases_seen = 0  # when the one whose turn it is began to wait
        self._why_released = ""
        self._closed = False

    @property
    def status(self) -> Status:
        """As it is at this moment; a process that has died holds nothing."""
        process, status = self._process, self._status
        died = status.state in ("ready", "answering") and (process is None or not process.lives)
        return Status("empty") if died else status

    def gives_up(self, gpu: int | None) -> int:
        """MiB that a run could have instead: on the GPU of this index, or of RAM (None)."""
        status = self.status
        return (status.memory_mb or 0) if status.claim is not None and status.claim.gpu == gpu else 0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.handle.pid if process and process.lives else None

    def load(self, order: ChatOrder, admission: Admission, closed: threading.Event) -> None:
        """Loads the model unless it is loaded. `closed` is set where nobody waits for it any more.

        Once forced, whatever else of the job is loaded, its base too, is as well, until it is let go.

        Raises what `admission` and the process raise; ConflictError where it was let go meanwhile; BusyError.
        """
        with self._my_turn(closed):
            self._ensure(order, admission)

    def answer(
        self, order: ChatOrder, admission: Admission, arguments: dict[str, Any], closed: threading.Event
    ) -> Generator[dict[str, Any], None, None]:
        """The events of `ChatModel.answer`, then its result with the type `end`; loads the model unless it is loaded.

        Closing the iterator ends the answer. Raises as `load` does.
        """
        with self._my_turn(closed):
            process = self._ensure(order, admission)
            self._status = replace(self._status, state="answering")
            number = next(self._numbers)
            process.send({"id": number, "op": "answer", "args": arguments})
            try:
                while "event" in (told := self._receive(process)):
                    yield told["event"]
            except GeneratorExit:
                self._break_off(process, number)
                raise
            self._status = replace(self._status, memory_mb=told["result"].pop("memory_mb"))
            yield {"type": "end", **told["result"]}

    def release(self, why: str) -> bool:
        """Ends the process at once and returns when its memory is free; False where there was none.

        Whoever waits for it, or for an answer, gets a ConflictError that says `why`.
        """
        self._why_released = why
        self._releases += 1
        process = self._process
        if process is None:
            return False
        process.kill()
        process.handle.wait()
        # Where it is someone's turn, they find it dead; they may be slow to look, and nobody need wait for that.
        if self._turn.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._turn.release()
        return True

    def close(self) -> None:
        """As `release`, for good."""
        self._closed = True
        self.release("the server is about to end")

    @contextlib.contextmanager
    def _my_turn(self, closed: threading.Event) -> Iterator[None]:
        """Waits until nobody else asks."""
        releases = self._releases
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{_MOST_WAITING} others wait for the model already; try again in a moment")
        try:
            while not self._turn.acquire(timeout=_LOOK_SECONDS):
                if closed.is_set():
                    raise BusyError("Nobody waits for the answer any more")
            try:
                self._idle.cancel()
                self._status = replace(self._status, idle_until=None)
                self._releases_seen = releases
                self._refuse_where_released()
                yield
            finally:
                self._settle()
                self._turn.release()
        finally:
            self._places.release()

    def _refuse_where_released(self) -> None:
        if self._closed or self._releases_seen != self._releases:
            raise ConflictError(f"The model was let go: {self._why_released}")

    def _ensure(self, order: ChatOrder, admission: Admission) -> PipeProcess:
        loaded = self.status
        forced = admission.forced or (loaded.forced and _job_of(loaded) == order.job_id)
        if self._process is not None and self._process.lives and _serves(loaded.order, order):
            self._status = replace(self._status, forced=forced)
            return self._process
        admission = replace(admission, forced=forced)
        claim = admission.plan()
        # What is loaded is not given up for what may not be loaded.
        admission.check(claim)
        self._end()
        try:
            return self._load(order, claim, admission)
        except BaseException:
            self._end()
            raise

    def _load(self, order: ChatOrder, claim: Claim, admission: Admission) -> PipeProcess:
        self._status = Status("loading", order, claim, admission.forced)
        admission.check(claim)
        environment = child_environment() | shown_gpus(None if claim.gpu is None else [claim.gpu])
        process = self._process = PipeProcess.start("chat", environment, self._log_file, self._fork_server)
        # Whoever let it go before there was a process to end could not end it.
        self._refuse_where_released()
        arguments = {name: value for name, value in vars(order).items() if name not in _NAMES}
        process.send({"id": next(self._numbers), "op": "load", "args": arguments})
        told = self._receive(process)
        self._status = replace(self._status, state="ready", memory_mb=told["result"]["memory_mb"])
        return process

    def _receive(self, process: PipeProcess) -> dict[str, Any]:
        try:
            told = process.receive()
        except EOFError as error:
            code = process.handle.wait()
            self._refuse_where_released()
            raise HelperError(f"The chat process died (exit code {code}); its output is in {self._log_file}") from error
        if "error" in told:
            raise as_error(told["error"])
        return told

    def _break_off(self, process: PipeProcess, number: int) -> None:
        """Waits until it has heard that nobody wants the answer, one token later."""
        process.send({"cancel": number})
        with contextlib.suppress(EOFError):
            while "event" in process.receive():
                pass

    def _settle(self) -> None:
        """After each call: ready for the next one, for as long as nothing may be asked."""
        if self._process is None or not self._process.lives:
            self._end()
            return
        until = time.monotonic() + self._idle.seconds
        self._status = replace(self._status, state="ready", idle_until=until)
        self._idle.start(until)

    def _let_go(self, until: float) -> None:
        with self._turn:
            # Unless someone came first.
            if self._status.idle_until == until:
                self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
        self._status = Status("empty")


def _job_of(status: Status) -> str | None:
    return status.order.job_id if status.order else None


def _serves(loaded: ChatOrder | None, wanted: ChatOrder) -> bool:
    if loaded is None or (loaded.job_id, loaded.attempt) != (wanted.job_id, wanted.attempt):
        return False
    return loaded.with_base or not wanted.with_base
