"""Calls to helper processes, which are started on demand, up to a limit, and ended when idle."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from merlina.domain.units import MIB
from merlina.errors import BusyError, HelperError, MerlinaError
from merlina.executors.environment import child_environment
from merlina.executors.idle_timer import IdleTimer
from merlina.executors.pipe_process import PipeProcess, as_error
from merlina.executors.progress_clock import ProgressClock
from merlina.executors.spare_processes import SpareProcesses
from merlina.schemas.operations import Operation, R

_TIMEOUT_SECONDS = 180.0
# Each call, also a waiting one, occupies a thread of the server.
_MAX_CALLS = 16
_POLL_SECONDS = 0.1
# After its client has disconnected, a call may complete in this time: starting another process would take longer.
_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class HelperLimits:
    """Maximum number of processes, and maximum memory that each call may allocate and each process may hold, in MiB."""

    processes: int = 1
    call_mb: int | None = None
    process_mb: int | None = None


class HelperPool:
    """Processes of `merlina.worker.helper.process`, started from a spare process if `spares` are given.

    Calls may come from any thread; each uses one process alone and waits for one if all are busy. The output of the
    processes' libraries is appended to `log_file`. `environment` extends the server's environment.
    """

    def __init__(
        self,
        idle_seconds: float,
        log_file: Path,
        spares: SpareProcesses | None = None,
        limits: HelperLimits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log_file = log_file
        self._spares = spares
        self._limits = limits or HelperLimits()
        self._environment = dict(environment or {})
        self._timer = IdleTimer(idle_seconds, self._unload_idle)
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._busy: set[_Call] = set()
        self._idle: list[tuple[PipeProcess, float]] = []
        self._numbers = itertools.count(1)
        self._closed = False

    def call(
        self,
        operation: Operation[R],
        *,
        timeout: float = _TIMEOUT_SECONDS,
        closed: threading.Event | None = None,
        hub_problem: str | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> R:
        """Carry out the operation in a process and return its result, or raise the same error as there.

        `closed` is set once the client has disconnected; the call then ends, and its process if necessary.
        `on_rows` receives the numbers of rows that were read so far from an operation that reports them.

        Raises HelperError if the process dies or takes longer than `timeout` seconds, not counting the time in which it
        waits for a processor; the next call starts another process. Raises the error of the operation's current phase
        if that exceeds its time or memory limit. Raises BusyError if too many calls are running or waiting already,
        since each occupies a thread of the server.
        """
        deadline = time.monotonic() + timeout
        call = _Call(operation.name, closed or threading.Event(), deadline, self._limits, on_rows)
        self._enter(call)
        try:
            process = call.process = self._take_process()
            self._refuse_when_closed()
            number = next(self._numbers)
            arguments = operation.model_dump(mode="json")
            request = {"id": number, "op": operation.name, "args": arguments, "hub_problem": hub_problem}
            process.send({**request, "memory_mb": self._limits.call_mb})
            reply = call.wait_for_reply(process)
            assert reply["id"] == number
        except BaseException:
            self._refuse_when_closed()
            raise
        finally:
            self._leave(call)
        if "error" in reply:
            raise as_error(reply["error"])
        result: R = operation.result_type().validate_python(reply["result"])
        return result

    def close(self) -> None:
        """End all processes. Running and later calls raise BusyError."""
        with self._changed:
            self._closed = True
            self._timer.cancel()
            idle, self._idle = self._idle, []
            busy = [call.process for call in self._busy if call.process is not None]
            self._changed.notify_all()
        for process in busy:
            process.kill()
        for process, _ in idle:
            process.end()

    @property
    def pid(self) -> int | None:
        """The id of the process that was used last; None if no process is alive."""
        with self._changed:
            known = [*(process for process, _ in self._idle), *(call.process for call in self._busy)]
        return next((process.handle.pid for process in reversed(known) if process and process.is_alive), None)

    def _enter(self, call: _Call) -> None:
        """Wait in order of arrival until a process is free or may be started."""
        ticket = object()
        with self._changed:
            if len(self._waiting) + len(self._busy) >= _MAX_CALLS:
                raise BusyError(f"{_MAX_CALLS} calls already use or wait for helper processes; try again in a moment")
            call.raise_if_abandoned()
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or len(self._busy) >= self._limits.processes:
                    self._refuse_when_closed()
                    call.raise_if_abandoned()
                    self._changed.wait(_POLL_SECONDS)
                self._refuse_when_closed()
                self._timer.cancel()
                self._busy.add(call)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _take_process(self) -> PipeProcess:
        """Return the idle process that was used last, to reuse its caches, or else a new one."""
        while True:
            with self._changed:
                if not self._idle:
                    break
                process, _ = self._idle.pop()
            if process.is_alive:
                return process
            process.end()
        environment = child_environment() | self._environment
        if "HF_TOKEN" in os.environ:
            environment["HF_TOKEN"] = os.environ["HF_TOKEN"]
        return PipeProcess.start("helper", environment, self._log_file, self._spares)

    def _leave(self, call: _Call) -> None:
        process = call.process
        is_reusable = call.is_complete and not self._closed
        if process is not None and not is_reusable:
            process.end()
        with self._changed:
            self._busy.discard(call)
            if process is not None and is_reusable:
                self._idle.append((process, time.monotonic()))
            if self._idle and not self._busy:
                self._timer.start()
            self._changed.notify_all()

    def _unload_idle(self) -> None:
        with self._changed:
            if self._busy:
                return
            idle, self._idle = self._idle, []
        for process, _ in idle:
            process.end()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BusyError("The server is shutting down; try again when it has restarted")


@dataclass(eq=False)
class _Call:
    """A call. Its phase is the part in progress, with a name, a time limit and the error to raise at the limit."""

    operation: str
    closed: threading.Event
    deadline: float
    limits: HelperLimits
    on_rows: Callable[[int], None] | None = None
    process: PipeProcess | None = None
    is_complete: bool = False
    _phase: Mapping[str, Any] | None = None
    _phase_deadline: float = field(default=float("inf"))
    _disconnected_at: float | None = None

    def raise_if_abandoned(self) -> None:
        """Raise BusyError if the client has disconnected or the call's time is over."""
        if self.closed.is_set():
            raise BusyError("Client disconnected")
        if time.monotonic() > self.deadline:
            raise BusyError("The helper processes are busy; try again in a moment")

    def wait_for_reply(self, process: PipeProcess) -> dict[str, Any]:
        """Return the reply, or raise as `HelperPool.call` does.

        If it raises, `is_complete` stays false and the pool ends the process.
        """
        clock = ProgressClock(process.handle.pid)
        while True:
            try:
                reply = process.receive(time.monotonic() + _POLL_SECONDS)
            except TimeoutError:
                self._check_limits(process, clock.now())
                continue
            except EOFError as error:
                code = process.handle.wait()
                died = f"The helper process died (exit code {code}) during {self.operation}"
                raise HelperError(f"{died}{self._in_phase()}; try again") from error
            if "phase" in reply:
                self._phase = reply["phase"]
                self._phase_deadline = clock.now() + reply["phase"]["seconds"]
                continue
            if "rows" in reply:
                if self.on_rows is not None:
                    self.on_rows(reply["rows"])
                continue
            self.is_complete = True
            return reply

    def _check_limits(self, process: PipeProcess, now: float) -> None:
        if self.closed.is_set():
            self._disconnected_at = self._disconnected_at or now
            if now > self._disconnected_at + _GRACE_SECONDS:
                raise BusyError("Client disconnected")
        if now > self._phase_deadline:
            assert self._phase is not None
            raise self._error(f"took longer than {self._phase['seconds']:g} s")
        if now > self.deadline:
            raise self._error("took too long")
        limit = self.limits.process_mb
        if limit is not None and _resident_mb(process) > limit:
            raise self._error(f"took more than {limit:,} MiB of memory")

    def _in_phase(self) -> str:
        return f" ({self._phase['name']})" if self._phase else ""

    def _error(self, problem: str) -> MerlinaError:
        """Return the error of the current phase; the phase's name states the cause."""
        if self._phase is None:
            return HelperError(f"The helper process {problem} during {self.operation}; try again")
        return as_error({**self._phase, "message": f"{self._phase['name']} {problem} and was ended"})


def _resident_mb(process: PipeProcess) -> float:
    try:
        return float(psutil.Process(process.handle.pid).memory_info().rss / MIB)
    except psutil.Error:
        return 0.0
