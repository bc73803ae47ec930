"""The server's side of the chat process: one process that holds one job's model, unloaded when idle or on request."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from merlina.errors import BusyError, ConflictError, HelperError
from merlina.executors.environment import child_environment, visible_gpus
from merlina.executors.idle_timer import IdleTimer
from merlina.executors.pipe_process import PipeProcess, as_error
from merlina.executors.spare_processes import SpareProcesses
from merlina.schemas.chat import AnswerBegins, AnswerEnds, AnswerText
from merlina.schemas.operations import AnswerMessages, AnswerToken, LoadChatModel, Operation

# Each waiting call holds one of the server's 40 request threads.
_MAX_WAITING = 8
_POLL_SECONDS = 0.1

AnswerEvent = AnswerBegins | AnswerToken | AnswerText | AnswerEnds
_EVENT: TypeAdapter[AnswerBegins | AnswerToken | AnswerText] = TypeAdapter(
    Annotated[AnswerBegins | AnswerToken | AnswerText, Field(discriminator="type")]
)
_State = Literal["empty", "loading", "ready", "answering"]


@dataclass(frozen=True)
class Claim:
    """The memory that a model holds or is about to hold: on the GPU with this index, or in RAM (None)."""

    gpu: int | None
    needed_mb: int


@dataclass(frozen=True)
class ChatModelSpec:
    """The model to load: the one that this attempt of the job saved."""

    job_id: str
    attempt: int
    loading: LoadChatModel


@dataclass(frozen=True)
class ChatStatus:
    """The loaded model, its claim, and whether it was loaded with `force`. `idle_until` is in time.monotonic()."""

    state: _State
    spec: ChatModelSpec | None = None
    claim: Claim | None = None
    forced: bool = False
    memory_mb: int | None = None
    idle_until: float | None = None

    @property
    def job_id(self) -> str | None:
        return self.spec.job_id if self.spec else None


class ChatProcess:
    """A process of `merlina.worker.chat` and the model in it.

    `claim`, `load` and `answer` must be called within `turn`; everything else may be called from any thread at any
    time. The output of the process's libraries is appended to `log_file`.
    """

    def __init__(self, idle_seconds: float, log_file: Path, spares: SpareProcesses | None = None) -> None:
        self._idle = IdleTimer(idle_seconds, self._unload_if_idle)
        self._log_file = log_file
        self._spares = spares
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_MAX_WAITING)
        self._numbers = itertools.count(1)
        self._process: PipeProcess | None = None
        self._status = ChatStatus("empty")
        self._unloads = 0
        self._unloads_before_turn = 0  # value of `_unloads` when the current turn was requested
        self._unload_reason = ""
        self._closed = False

    @property
    def status(self) -> ChatStatus:
        """The current status; a process that has died holds no model."""
        process, status = self._process, self._status
        died = status.state in ("ready", "answering") and (process is None or not process.is_alive)
        return ChatStatus("empty") if died else status

    def reclaimable_mb(self, gpu: int | None) -> int:
        """Return the MiB that unloading the model would free on this GPU, or in RAM (None)."""
        status = self.status
        return (status.memory_mb or 0) if status.claim is not None and status.claim.gpu == gpu else 0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.handle.pid if process and process.is_alive else None

    def has_loaded(self, spec: ChatModelSpec) -> bool:
        """Return whether the model of `spec` is loaded, with its base model if the spec needs it."""
        loaded = self.status.spec if self._process is not None and self._process.is_alive else None
        if loaded is None or (loaded.job_id, loaded.attempt) != (spec.job_id, spec.attempt):
            return False
        return loaded.loading.with_base or not spec.loading.with_base

    @contextlib.contextmanager
    def turn(self, closed: threading.Event) -> Iterator[None]:
        """Wait for exclusive use of the process.

        Raises BusyError if too many calls wait or `closed` is set meanwhile (the client disconnected), and
        ConflictError if the model was unloaded meanwhile or the server is shutting down.
        """
        unloads = self._unloads
        if not self._waiting.acquire(blocking=False):
            raise BusyError(f"{_MAX_WAITING} requests already wait for the chat model; try again in a moment")
        try:
            while not self._turn.acquire(timeout=_POLL_SECONDS):
                if closed.is_set():
                    raise BusyError("Client disconnected")
            try:
                self._idle.cancel()
                self._status = replace(self._status, idle_until=None)
                self._unloads_before_turn = unloads
                self._raise_if_unloaded()
                yield
            finally:
                self._end_turn()
                self._turn.release()
        finally:
            self._waiting.release()

    def force(self) -> None:
        """Mark the loaded model as loaded with `force`."""
        self._status = replace(self._status, forced=True)

    def claim(self, spec: ChatModelSpec, claim: Claim, *, forced: bool) -> None:
        """Unload the current model and publish the claim of the next one, which `load` then loads."""
        self._end()
        self._status = ChatStatus("loading", spec, claim, forced)

    def load(self) -> None:
        """Load the claimed model. Raises the errors of the process, and ConflictError if it was unloaded meanwhile."""
        spec, claim = self._status.spec, self._status.claim
        assert spec is not None
        assert claim is not None
        try:
            environment = child_environment() | visible_gpus(None if claim.gpu is None else [claim.gpu])
            process = self._process = PipeProcess.start("chat", environment, self._log_file, self._spares)
            # An unload before this line found no process to end.
            self._raise_if_unloaded()
            self._send(process, spec.loading)
            memory_mb = spec.loading.result_type().validate_python(self._receive(process)["result"])
        except BaseException:
            self._end()
            raise
        self._status = replace(self._status, state="ready", memory_mb=memory_mb)

    def answer(self, operation: AnswerMessages) -> Generator[AnswerEvent, None, None]:
        """Yield the events of the answer as they are generated.

        Closing the iterator cancels the answer. Raises the errors of the process, and ConflictError if the model was
        unloaded.
        """
        process = self._process
        assert process is not None
        self._status = replace(self._status, state="answering")
        number = self._send(process, operation)
        try:
            while "event" in (reply := self._receive(process)):
                yield _EVENT.validate_python(reply["event"])
        except GeneratorExit:
            _cancel(process, number)
            raise
        finished = operation.result_type().validate_python(reply["result"])
        self._status = replace(self._status, memory_mb=finished.memory_mb)
        yield finished.end

    def unload(self, reason: str) -> bool:
        """End the process at once and return when its memory is free; return False if there was no process.

        Calls that use or wait for the model raise ConflictError with the reason.
        """
        self._unload_reason = reason
        self._unloads += 1
        process = self._process
        if process is None:
            return False
        process.kill()
        process.handle.wait()
        # A call that has its turn notices the death by itself; waiting for it could take as long as its client reads.
        if self._turn.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._turn.release()
        return True

    def close(self) -> None:
        """Unload the model and refuse all further calls."""
        self._closed = True
        self.unload("the server is shutting down")

    def _raise_if_unloaded(self) -> None:
        if self._closed or self._unloads_before_turn != self._unloads:
            raise ConflictError(f"The model was unloaded: {self._unload_reason}")

    def _send(self, process: PipeProcess, operation: Operation[Any]) -> int:
        """Send an operation and return its number."""
        number = next(self._numbers)
        process.send({"id": number, "op": operation.name, "args": operation.model_dump(mode="json")})
        return number

    def _receive(self, process: PipeProcess) -> dict[str, Any]:
        try:
            reply = process.receive()
        except EOFError as error:
            code = process.handle.wait()
            self._raise_if_unloaded()
            raise HelperError(f"The chat process died (exit code {code}); its output is in {self._log_file}") from error
        if "error" in reply:
            raise as_error(reply["error"])
        return reply

    def _end_turn(self) -> None:
        if self._process is None or not self._process.is_alive:
            self._end()
            return
        until = time.monotonic() + self._idle.seconds
        self._status = replace(self._status, state="ready", idle_until=until)
        self._idle.start(until)

    def _unload_if_idle(self, until: float) -> None:
        with self._turn:
            # A call that came first has replaced `idle_until`.
            if self._status.idle_until == until:
                self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
        self._status = ChatStatus("empty")


def _cancel(process: PipeProcess, number: int) -> None:
    """Cancel an answer and wait until the process has stopped it, one token later."""
    process.send({"cancel": number})
    with contextlib.suppress(EOFError):
        while "event" in process.receive():
            pass
