"""Jobs as processes of this machine, each in its own session, identified by their lock after a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merlina.executors.environment import child_environment, visible_gpus
from merlina.executors.spare_processes import SpareProcesses, start_process
from merlina.faults import FaultPoint, reach
from merlina.hardware.host import describe_signal, oom_kills
from merlina.private_files import write_private
from merlina.processes import ProcessId
from merlina.run_folder.folder import DETACHED_EXIT_CODE, RunFolder
from merlina.run_folder.order import RunOrder

_TOKEN_VARIABLES = {"hf_token": "HF_TOKEN", "wandb_key": "WANDB_API_KEY"}


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    oom_kills_before: int


@dataclass
class LocalExecutor:
    """Runs `python -m merlina.worker` for each job, from a spare process if `spares` are given and one is ready.

    `tokens` are used by runs that bring none of their own, under the same names as in the run's secrets.json.
    """

    tokens: Mapping[str, str]
    spares: SpareProcesses | None
    _children: dict[Path, _Child] = field(default_factory=dict)

    def launch(self, folder: RunFolder, order: RunOrder, gpus: Sequence[int] | None) -> None:
        with folder.locked() as lock:
            if lock is None:
                return
            os.ftruncate(lock, 0)
            folder.write_order(order)
            reach(FaultPoint.START_ORDERED)
            process = self._spawn(folder, lock, gpus)
            reach(FaultPoint.START_SPAWNED)
            self._children[folder.path] = _Child(process, oom_kills())

    def is_alive(self, folder: RunFolder, worker: ProcessId | None = None) -> bool:
        return folder.is_locked() or self._pid(folder, worker) is not None

    def is_detached(self, folder: RunFolder) -> bool:
        return not folder.is_locked()

    def request_stop(self, folder: RunFolder) -> None:
        try:
            # A worker ends itself after its folder was removed.
            with contextlib.suppress(FileNotFoundError):
                folder.stop_file.touch(mode=0o600)
        except OSError:
            # A signal without a file means a stop. It is sent alone if the disk is too full for the file.
            if not self._signal(folder):
                raise
            return
        self._signal(folder)

    def request_pause(self, folder: RunFolder, reason: str) -> None:
        # A signal without the file would mean a stop.
        with contextlib.suppress(FileNotFoundError):
            write_private(folder.pause_file, reason.encode())
        self._signal(folder)

    def _signal(self, folder: RunFolder) -> bool:
        """Signal the worker to check its folder for requests; return False if that is not possible."""
        # The lock file contains a worker's identity after setting its signal handler; until then, the file is enough.
        worker = folder.worker()
        if worker is not None and worker.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
                return True
        return False

    def kill(self, folder: RunFolder, worker: ProcessId | None = None) -> None:
        pid = self._pid(folder, worker)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _pid(self, folder: RunFolder, known: ProcessId | None) -> int | None:
        """Return the living worker's process id, by its lock file, the given identity or this process's children."""
        for worker in (folder.worker(), known):
            if worker is not None and worker.is_alive():
                return worker.pid
        child = self._children.get(folder.path)
        return child.process.pid if child and child.process.poll() is None else None

    def cause_of_death(self, folder: RunFolder) -> str:
        child = self._children.get(folder.path)
        code = child.process.poll() if child else None
        if child is None or code is None:
            return f"died while the server was not running; its output is in {folder.log_file}"
        if code == DETACHED_EXIT_CODE:
            return (
                f"ended itself because its run folder {folder.path}, or the lock or event log in it, was removed or "
                "replaced while it was running"
            )
        if code < 0:
            return describe_signal(-code, out_of_memory=oom_kills() > child.oom_kills_before)
        return f"ended with exit code {code} and reported no error; its output is in {folder.log_file}"

    def _spawn(self, folder: RunFolder, lock: int, gpus: Sequence[int] | None) -> subprocess.Popen[bytes]:
        environment = self._environment(folder, gpus)
        start = start_process if self.spares is None else self.spares.start
        with folder.log_file.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            folder.log_file.chmod(0o600)
            files = [nothing.fileno(), log.fileno(), log.fileno(), lock]
            process = start("worker", [str(folder.path)], environment, files)
        # Without a thread that waits for it, the process would stay in the process table after its end.
        threading.Thread(target=process.wait, name=f"reaper of {process.pid}", daemon=True).start()
        return process

    def _environment(self, folder: RunFolder, gpus: Sequence[int] | None) -> dict[str, str]:
        environment = child_environment()
        tokens = {**self.tokens, **folder.read_secrets()}
        environment |= {_TOKEN_VARIABLES[name]: token for name, token in tokens.items()}
        return environment | visible_gpus(gpus)
