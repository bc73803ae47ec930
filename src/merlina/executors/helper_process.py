"""The caller of helper processes: started on first need, a few at a time, unloaded when idle."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from merlina.errors import BusyError, HelperError, MerlinaError
from merlina.executors.fork_server import ForkServer, child_environment
from merlina.executors.idle_timeout import IdleTimer
from merlina.executors.pipe_process import PipeProcess, as_error
from merlina.executors.progress_clock import PatientClock

_TIMEOUT_SECONDS = 180.0
# Each call, also a waiting one, holds a thread of the server's.
_MOST_CALLS = 16
_LOOK_SECONDS = 0.1
# A call whose client has gone may still end by itself: to start another process would take longer.
_GRACE_SECONDS = 2.0
_MB = 1024**2


@dataclass(frozen=True)
class HelperLimits:
    """How many processes there are at most, and how much memory each call may take and each process may hold, in MB."""

    processes: int = 1
    call_mb: int | None = None
    process_mb: int | None = None


class Helper:
    """Processes of `merlina.worker.helper.process`, forked where there is a fork server.

    Calls come from any thread; each has a process for itself, and waits for one where all are busy.
    What their libraries print goes to `log_file`. `environment` is added to the server's own.
    """

    def __init__(
        self,
        idle_seconds: float,
        log_file: Path,
        fork_server: ForkServer | None = None,
        limits: HelperLimits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log_file = log_file
        self._fork_server = fork_server
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
        operation: str,
        *,
        timeout: float = _TIMEOUT_SECONDS,
        closed: threading.Event | None = None,
        hub_problem: str | None = None,
        **arguments: Any,
    ) -> Any:
        """The operation's result. What went wrong there is raised here, as the same error of our tree.

        `closed` is set once nobody waits for the result any more: then the call ends, and its process if it must.

        Raises HelperError where the process dies or takes longer than `timeout` seconds, not counting those in which it
        waits for a processor; the next call starts another.
        Raises the error of the operation's current phase where that takes too much time or memory. Raises BusyError
        where there are too many calls already, since each keeps a thread from the rest of the server.
        """
        call = _Call(operation, closed or threading.Event(), time.monotonic() + timeout, self._limits)
        self._take_place(call)
        try:
            process = call.process = self._take_process()
            self._refuse_when_closed()
            number = next(self._numbers)
            request = {"id": number, "op": operation, "args": arguments, "hub_problem": hub_problem}
            process.send({**request, "memory_mb": self._limits.call_mb})
            answer = call.wait_for_answer(process)
            assert answer["id"] == number
        except BaseException:
            self._refuse_when_closed()
            raise
        finally:
            self._leave_place(call)
        if "error" in answer:
            raise as_error(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Ends all processes; calls that are under way raise BusyError, as do all later ones."""
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
        """A process that is at work, else the one that was last; None without any."""
        with self._changed:
            known = [*(process for process, _ in self._idle), *(call.process for call in self._busy)]
        return next((process.handle.pid for process in reversed(known) if process and process.lives), None)

    def _take_place(self, call: _Call) -> None:
        """Wait, first come, first served, until a process is free or may be started."""
        ticket = object()
        with self._changed:
            if len(self._waiting) + len(self._busy) >= _MOST_CALLS:
                raise BusyError(f"{_MOST_CALLS} others wait for the helper process already; try again in a moment")
            call.check_is_wanted()
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or len(self._busy) >= self._limits.processes:
                    self._refuse_when_closed()
                    call.check_is_wanted()
                    self._changed.wait(_LOOK_SECONDS)
                self._refuse_when_closed()
                self._timer.cancel()
                self._busy.add(call)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _take_process(self) -> PipeProcess:
        """The idle one that was at work last, so that what it has loaded is used again; else a new one."""
        while True:
            with self._changed:
                if not self._idle:
                    break
                process, _ = self._idle.pop()
            if process.lives:
                return process
            process.end()
        environment = child_environment() | self._environment
        if "HF_TOKEN" in os.environ:
            environment["HF_TOKEN"] = os.environ["HF_TOKEN"]
        return PipeProcess.start("helper", environment, self._log_file, self._fork_server)

    def _leave_place(self, call: _Call) -> None:
        process = call.process
        keeps = call.answered and not self._closed
        if process is not None and not keeps:
            process.end()
        with self._changed:
            self._busy.discard(call)
            if process is not None and keeps:
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
            raise BusyError("The server is about to end; ask again when it is back")


@dataclass(eq=False)
class _Call:
    """One call; `phase` is the name, the time limit and the kind of error of what the process does now."""

    operation: str
    closed: threading.Event
    deadline: float
    limits: HelperLimits
    process: PipeProcess | None = None
    answered: bool = False
    _phase: Mapping[str, Any] | None = None
    _phase_deadline: float = field(default=float("inf"))
    _left_at: float | None = None

    def check_is_wanted(self) -> None:
        """Raises BusyError where the client has gone, HelperError where the time is over."""
        if self.closed.is_set():
            raise BusyError("Nobody waits for the answer any more")
        if time.monotonic() > self.deadline:
            raise BusyError("The helper processes are busy; try again in a moment")

    def wait_for_answer(self, process: PipeProcess) -> dict[str, Any]:
        """Raises what `Helper.call` says; unless `answered` is set then, the process is of no use any more."""
        clock = PatientClock(process.handle.pid)
        while True:
            try:
                answer = process.receive(time.monotonic() + _LOOK_SECONDS)
            except TimeoutError:
                self._check(process, clock.now())
                continue
            except EOFError as error:
                code = process.handle.wait()
                died = f"The helper process died (exit code {code}) during {self.operation}"
                raise HelperError(f"{died}{self._in_phase()}; try again") from error
            if "phase" in answer:
                self._phase = answer["phase"]
                self._phase_deadline = clock.now() + answer["phase"]["seconds"]
                continue
            self.answered = True
            return answer

    def _check(self, process: PipeProcess, now: float) -> None:
        if self.closed.is_set():
            self._left_at = self._left_at or now
            if now > self._left_at + _GRACE_SECONDS:
                raise BusyError("Nobody waits for the answer any more")
        if now > self._phase_deadline:
            assert self._phase is not None
            raise self._error(f"took longer than {self._phase['seconds']:g} s")
        if now > self.deadline:
            raise self._error("took too long")
        most = self.limits.process_mb
        if most is not None and _resident_mb(process) > most:
            raise self._error(f"took more than {most:,} MB of memory")

    def _in_phase(self) -> str:
        return f" ({self._phase['name']})" if self._phase else ""

    def _error(self, what: str) -> MerlinaError:
        """The error of the current phase, which names the cause."""
        if self._phase is None:
            return HelperError(f"The helper process {what} during {self.operation}; try again")
        return as_error({**self._phase, "message": f"{self._phase['name']} {what}; it was ended"})


def _resident_mb(process: PipeProcess) -> float:
    try:
        return float(psutil.Process(process.handle.pid).memory_info().rss / _MB)
    except psutil.Error:
        return 0.0
