"""Runs the server until it is told to end. Training goes on without it."""

from __future__ import annotations

import logging
import signal
import socket
from pathlib import Path

import uvicorn

from merlina.api.app import create_app
from merlina.api.folders import sole_server
from merlina.errors import ServerError
from merlina.settings import Settings

_log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_GOODBYE_SECONDS = 5
_SHORT_KEY = 16


def serve(settings: Settings) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP.

    Raises ServerError where the address is taken, or the data folder is in use or can't be used.
    """
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for warning in risks(settings, Path.cwd()):
        _log.warning("%s", warning)
    listener = _listen(settings.host, settings.port)
    with listener, sole_server(settings.lock_file):
        config = uvicorn.Config(
            create_app(settings),
            log_level=settings.log_level.lower(),
            access_log=settings.log_level == "DEBUG",
            log_config=None,
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
            # Live messages are short; compressing each for each reader takes more from the training than it saves.
            ws_per_message_deflate=False,
        )
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _log.info("Merlina listens on %s%s", address, f", known as {settings.domain}" if settings.domain else "")
        server = uvicorn.Server(config)
        # A terminal that closes is a request to end, except where nohup has asked for the contrary.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, server.handle_exit)
        server.run(sockets=[listener])


def risks(settings: Settings, folder: Path) -> list[str]:
    """What of these settings, in a server started in `folder`, its owner may not have meant, one line each."""
    found = []
    if settings.host not in _LOOPBACK and settings.api_key is None:
        found.append(f"listening on {settings.host} without API_KEY: whoever reaches this address may use it")
    if settings.api_key is not None and len(settings.api_key.get_secret_value()) < _SHORT_KEY:
        found.append(f"API_KEY has fewer than {_SHORT_KEY} characters and may be guessed; use a long random one")
    if not settings.allowed_paths and folder == Path(folder.anchor):
        found.append(f"started in {folder} without ALLOWED_PATHS: requests may read and write any file below it")
    for path in settings.allowed_paths:
        resolved = path.expanduser().resolve()
        if not resolved.is_dir():
            found.append(f"ALLOWED_PATHS: {path} is not a folder that exists, so no request can use it")
        elif resolved == Path(resolved.anchor):
            found.append(f"ALLOWED_PATHS: {path} is the whole disk: requests may read and write any file below it")
    return found


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise ServerError(
            f"can't listen on {host}:{port}: {error.strerror}; choose another with --port or PORT"
        ) from error
    return listener
