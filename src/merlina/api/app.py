"""Wires the parts of the server together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from merlina.api import docs, error_responses, openapi, page
from merlina.api.folders import make_folders
from merlina.api.middleware.api_key import ApiKeyMiddleware
from merlina.api.middleware.body_limits import BodyLimitMiddleware
from merlina.api.middleware.head_requests import HeadMiddleware
from merlina.api.middleware.origins import OriginMiddleware, ServerNames
from merlina.api.middleware.response_cache import ResponseCacheMiddleware
from merlina.api.middleware.sessions import LoggedOut, Sessions
from merlina.api.middleware.sub_path import SubPathMiddleware, sub_path_of
from merlina.api.routes import ROUTERS
from merlina.api.services import Services
from merlina.api.uploads.receiving import recover_uploads
from merlina.chat.comparisons import Comparisons
from merlina.chat.completions import Completions
from merlina.chat.memory import ChatMemory
from merlina.chat.served_models import ModelNames
from merlina.chat.service import ChatService
from merlina.data.readers.sources import resolve_additional_files
from merlina.executors.chat_process import ChatProcess
from merlina.executors.helper_pools import HelperPools
from merlina.executors.local import LocalExecutor
from merlina.executors.spare_processes import SpareProcesses
from merlina.hardware.gpus import list_gpus
from merlina.jobs.broadcast import Broadcast
from merlina.jobs.commands import JobCommands
from merlina.jobs.moves import Moves
from merlina.jobs.resuming import compare_with
from merlina.jobs.supervisor.supervisor import Supervisor
from merlina.paths import AllowedPaths
from merlina.preflight.checks import Preflight
from merlina.preflight.row_counts import RowCounts
from merlina.settings import Settings
from merlina.storage.configs import ConfigStore
from merlina.storage.opening import open_database
from merlina.version import current


def create_app(settings: Settings) -> FastAPI:
    """Return the server's application; its lifespan starts the supervisor and closes all parts at the end.

    Raises ServerError if its folders or its database cannot be opened.
    """
    services = build_services(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = services
        services.supervisor.start()
        yield
        services.supervisor.close()
        services.chat_process.close()
        services.helpers.close()
        if services.spares is not None:
            services.spares.close()
        services.database.close()

    app = FastAPI(
        title="Merlina",
        version=current().number,
        summary="Fine-tunes language models on preference pairs",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
        # DELETE /jobs/ must not be redirected to DELETE /jobs, which deletes all jobs.
        redirect_slashes=False,
    )
    # Not include_router, which builds every route a second time during an early request: for 0.2 s, no other request
    # would get a response.
    for router in (*ROUTERS, docs.router):
        app.router.routes.extend(router.routes)
    page.install(app)
    error_responses.install(app)
    _add_middleware(app, settings, services.sessions)
    app.openapi = lambda: openapi.describe(app, sub_path_of(settings))  # type: ignore[method-assign]
    return app


def build_services(settings: Settings) -> Services:
    """Open the database and build every part without starting any."""
    make_folders(settings)
    where = "DATABASE_URL" if settings.database_url else str(settings.data_dir)
    database = open_database(settings.sqlalchemy_url, where)
    # This modifies files, so it must come after the database was opened successfully.
    recover_uploads(database, settings.uploads_dir)
    allowed = AllowedPaths(settings.allowed_roots, settings.private_paths, settings.allowed_urls)
    broadcast = Broadcast()
    moves = Moves(database, broadcast)
    spares = SpareProcesses(settings.helper_idle_seconds, settings.helper_log) if settings.spare_processes else None
    executor = LocalExecutor(_server_tokens(settings), spares)
    chat_process = ChatProcess(settings.chat_idle_seconds, settings.chat_log, spares)
    chat_memory = ChatMemory(database, chat_process, settings.runs_dir, list_gpus)
    find_files = partial(resolve_additional_files, uploads_dir=settings.uploads_dir, allowed=allowed)
    supervisor = Supervisor(
        database,
        moves,
        executor,
        runs_dir=settings.runs_dir,
        max_concurrent=settings.max_concurrent_jobs,
        share_gpus=settings.share_gpus,
        stop_grace_seconds=settings.stop_grace_seconds,
        trust_remote_code=settings.trust_remote_code,
        max_row_mb=settings.max_row_size_mb,
        allowed_data_urls=settings.allowed_urls.entries,
        list_gpus=list_gpus,
        free_memory_for=chat_memory.unload_for,
        find_files=find_files,
    )
    helpers = HelperPools.build(settings.helper_idle_seconds, settings.helper_log, spares)
    compare_data = compare_with(helpers.rows, settings.max_row_size_mb, find_files)
    commands = JobCommands(
        database, moves, executor, settings.runs_dir, settings.models_dir, supervisor.wake, compare_data, find_files
    )
    row_counts = RowCounts(database, helpers, settings.max_row_size_mb)
    chat = ChatService(settings, commands, helpers, chat_memory, chat_process)
    return Services(
        settings=settings,
        allowed=allowed,
        database=database,
        broadcast=broadcast,
        supervisor=supervisor,
        commands=commands,
        preflight=Preflight(settings, allowed, helpers, row_counts, chat_process, list_gpus, database),
        helpers=helpers,
        row_counts=row_counts,
        chat_process=chat_process,
        chat=chat,
        comparisons=Comparisons(database, commands, chat),
        completions=Completions(chat, ModelNames(database)),
        spares=spares,
        configs=ConfigStore(settings.configs_dir),
        sessions=_sessions(settings),
    )


def _sessions(settings: Settings) -> Sessions | None:
    """Return None if no API key is set."""
    key = settings.api_key
    return Sessions(key.get_secret_value().encode(), LoggedOut(settings.logged_out_file)) if key else None


def _server_tokens(settings: Settings) -> dict[str, str]:
    tokens = {"hf_token": settings.hf_token, "wandb_key": settings.wandb_api_key}
    return {name: token.get_secret_value() for name, token in tokens.items() if token}


def _add_middleware(app: FastAPI, settings: Settings, sessions: Sessions | None) -> None:
    """Add the middleware. The last one added sees a request first, so access is checked before the cache is read."""
    app.add_middleware(ResponseCacheMiddleware, revision=lambda: app.state.services.database.write_count)
    app.add_middleware(BodyLimitMiddleware, streamed_path="/dataset/upload-file")
    if sessions:
        app.add_middleware(ApiKeyMiddleware, sessions=sessions)
    names = ServerNames.of(settings)
    app.add_middleware(OriginMiddleware, names=names)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=sorted(names.allowed), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(HeadMiddleware)
    if sub_path := sub_path_of(settings):
        app.add_middleware(SubPathMiddleware, sub_path=sub_path)
