"""The parts of a running server, which `app` builds and FastAPI passes to the routes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends
from fastapi.requests import HTTPConnection

from merlina.api.long_requests import LONG_REQUEST_THREADS
from merlina.api.middleware.sessions import Sessions
from merlina.api.uploads.upload_limits import UploadLimits
from merlina.chat.comparisons import Comparisons
from merlina.chat.completions import Completions
from merlina.chat.service import ChatService
from merlina.executors.chat_process import ChatProcess
from merlina.executors.helper_pools import HelperPools
from merlina.executors.spare_processes import SpareProcesses
from merlina.jobs.broadcast import Broadcast
from merlina.jobs.commands import JobCommands
from merlina.jobs.result_cache import ResultCache
from merlina.jobs.supervisor.supervisor import Supervisor
from merlina.paths import AllowedPaths
from merlina.preflight.checks import Preflight
from merlina.preflight.row_counts import RowCounts
from merlina.settings import Settings
from merlina.storage.configs import ConfigStore
from merlina.storage.database import Database


@dataclass
class Services:
    """The parts of a running server, and its counters."""

    settings: Settings
    allowed: AllowedPaths
    database: Database
    broadcast: Broadcast
    supervisor: Supervisor
    commands: JobCommands
    preflight: Preflight
    helpers: HelperPools
    chat_process: ChatProcess
    chat: ChatService
    comparisons: Comparisons
    completions: Completions
    spares: SpareProcesses | None
    configs: ConfigStore
    sessions: Sessions | None
    row_counts: RowCounts
    started_at: float = field(default_factory=time.monotonic)
    websockets: int = 0
    preloaded: set[str] = field(default_factory=set)
    event_results: ResultCache = field(default_factory=ResultCache)
    upload_limits: UploadLimits = field(default_factory=UploadLimits)
    long_request_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LONG_REQUEST_THREADS))


def _services(connection: HTTPConnection) -> Services:
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(_services)]
