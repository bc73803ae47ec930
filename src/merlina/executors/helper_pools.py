"""The pools of helper processes, one per kind of work, so that no kind waits for another.

rows     reads files; imports neither torch nor transformers, and starts in less than a second
local    inspects tokenizers and models on this machine; never uses the network
remote   as local, but reads data sets at addresses outside this machine
hub      carries out operations that may need the Hugging Face Hub
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from merlina.domain.data_urls import FileLocation, RemoteFile
from merlina.errors import DataError, MerlinaError, ModelError, UnreachableError
from merlina.executors.helper_process import HelperLimits, HelperPool
from merlina.executors.spare_processes import SpareProcesses
from merlina.hub_reachability import HubReachability
from merlina.hub_repositories import RepoKind
from merlina.schemas.operations import Operation, R

_TIMEOUT_SECONDS = 180.0
_ROWS = HelperLimits(processes=4, call_mb=1024, process_mb=1536)
_LOCAL = HelperLimits(processes=2, call_mb=4096, process_mb=8192)
_NETWORK = HelperLimits(processes=4, call_mb=4096, process_mb=8192)
# The Hub's client by default waits twice as long, several times in a row.
_SHORT_WAITS = {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}


@dataclass(frozen=True)
class Repo:
    """A repository of the Hub that a call needs, or may need if it is not `required`."""

    kind: RepoKind
    repo_id: str
    required: bool = True


@dataclass(frozen=True)
class HelperPools:
    """The four pools; calls may come from any thread."""

    rows: HelperPool
    local: HelperPool
    remote: HelperPool
    hub: HelperPool
    hub_reachability: HubReachability = field(default_factory=HubReachability)

    @staticmethod
    def build(idle_seconds: float, log_file: Path, spares: SpareProcesses | None) -> HelperPools:
        """Return the pools; processes are started on demand."""
        waits = {name: os.environ.get(name, value) for name, value in _SHORT_WAITS.items()}
        return HelperPools(
            rows=HelperPool(idle_seconds, log_file, None, _ROWS, {"HF_HUB_OFFLINE": "1"}),
            local=HelperPool(idle_seconds, log_file, spares, _LOCAL, {"HF_HUB_OFFLINE": "1"}),
            remote=HelperPool(idle_seconds, log_file, spares, _NETWORK, {"HF_HUB_OFFLINE": "1"}),
            hub=HelperPool(idle_seconds, log_file, spares, _NETWORK, waits),
        )

    def reader_of(self, file: FileLocation) -> HelperPool:
        """Return the pool that reads this file as text."""
        return self.remote if isinstance(file, RemoteFile) else self.rows

    def call(
        self,
        operation: Operation[R],
        repos: Sequence[Repo],
        *,
        files: Iterable[FileLocation | None] = (),
        timeout: float = _TIMEOUT_SECONDS,
        closed: threading.Event | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> R:
        """Carry out an operation that needs these repositories of the Hub; without any, it runs without the Hub.

        `files` are those that it reads; one at an address is read over the network. If the Hub cannot be reached, the
        operation uses this machine's cache. Raises UnreachableError if a required repository is not cached (with
        HF_HUB_OFFLINE: DataError or ModelError), and the errors of `HelperPool.call`.
        """
        problem = self.hub_reachability.problem() if repos else None
        if not repos or problem is not None:
            for repo in filter(lambda repo: repo.required, repos):
                _check_is_cached(repo, problem)
            pool = self.remote if any(isinstance(file, RemoteFile) for file in files) else self.local
            return pool.call(operation, timeout=timeout, closed=closed, hub_problem=problem, on_rows=on_rows)
        try:
            return self.hub.call(operation, timeout=timeout, closed=closed, on_rows=on_rows)
        except MerlinaError:
            # The Hub may have become unreachable: the next call checks again.
            self.hub_reachability.invalidate()
            raise

    def close(self) -> None:
        """End all processes."""
        for helper in (self.rows, self.local, self.remote, self.hub):
            helper.close()


def _check_is_cached(repo: Repo, problem: str | None) -> None:
    """Raise unless some of the repository is cached; only reading it shows whether everything needed is."""
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo.repo_id, repo_type=repo.kind))
    home = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME, "datasets")))
    prepared = home / repo.repo_id.replace("/", "___")
    if folder.is_dir() or (repo.kind == "dataset" and prepared.is_dir()):
        return
    name = "data set" if repo.kind == "dataset" else repo.kind
    message = f"{problem}, and the {name} {repo.repo_id!r} is not in this machine's cache"
    if not constants.is_offline_mode():
        raise UnreachableError(message)
    raise DataError(message) if repo.kind == "dataset" else ModelError(message)
