"""The helper processes by what they do, so that none waits for another's kind of work.

rows     read files; they import neither torch nor transformers, and start in less than a second
local    tokenizers and models on this machine; they never use the network
hub      whatever may need the Hugging Face Hub
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from merlina.errors import DataError, MerlinaError, ModelError, UnreachableError
from merlina.executors.fork_server import ForkServer
from merlina.executors.helper_process import Helper, HelperLimits
from merlina.hub_errors import RepoKind
from merlina.hub_reachability import HubReach

_TIMEOUT_SECONDS = 180.0
_ROWS = HelperLimits(processes=4, call_mb=1024, process_mb=1536)
_LOCAL = HelperLimits(processes=2, call_mb=4096, process_mb=8192)
_HUB = HelperLimits(processes=4, call_mb=4096, process_mb=8192)
# The Hub's client waits twice as long by itself, several times in a row.
_SHORT_WAITS = {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}


@dataclass(frozen=True)
class Repo:
    """A repository of the Hub that a call needs; one that is not `required` it only may need."""

    kind: RepoKind
    repo_id: str
    required: bool = True


@dataclass(frozen=True)
class Helpers:
    """Calls from any thread."""

    rows: Helper
    local: Helper
    hub: Helper
    reach: HubReach = field(default_factory=HubReach)

    @staticmethod
    def build(idle_seconds: float, log_file: Path, fork_server: ForkServer) -> Helpers:
        """Nothing is started yet."""
        waits = {name: os.environ.get(name, value) for name, value in _SHORT_WAITS.items()}
        return Helpers(
            rows=Helper(idle_seconds, log_file, None, _ROWS, {"HF_HUB_OFFLINE": "1"}),
            local=Helper(idle_seconds, log_file, fork_server, _LOCAL, {"HF_HUB_OFFLINE": "1"}),
            hub=Helper(idle_seconds, log_file, fork_server, _HUB, waits),
        )

    def call(
        self,
        operation: str,
        repos: Sequence[Repo],
        *,
        timeout: float = _TIMEOUT_SECONDS,
        closed: threading.Event | None = None,
        **arguments: Any,
    ) -> Any:
        """The result of an operation that needs these repositories of the Hub; none of them: this machine alone.

        Where the Hub can't be reached, this machine's cache is used instead. Raises UnreachableError where a repository
        is not in it (DataError, ModelError where HF_HUB_OFFLINE is set), and what `Helper.call` raises.
        """
        problem = self.reach.problem() if repos else None
        if not repos or problem is not None:
            for repo in filter(lambda repo: repo.required, repos):
                _check_is_cached(repo, problem)
            return self.local.call(operation, timeout=timeout, closed=closed, hub_problem=problem, **arguments)
        try:
            return self.hub.call(operation, timeout=timeout, closed=closed, **arguments)
        except MerlinaError:
            # It may have gone away meanwhile: the next call is to find out at once.
            self.reach.forget()
            raise

    def close(self) -> None:
        """Ends all processes."""
        for helper in (self.rows, self.local, self.hub):
            helper.close()


def _check_is_cached(repo: Repo, problem: str | None) -> None:
    """Whether anything of it is here; whether that suffices, only reading it will tell."""
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
