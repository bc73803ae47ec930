"""Runs the server until it is told to end. Training goes on without it."""

from __future__ import annotations

import logging
import socket

import uvicorn

from merlina.api.app import create_app
from merlina.api.folders import sole_server
from merlina.errors import ServerError
from merlina.settings import Settings

_log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_GOODBYE_SECONDS = 5


def serve(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises ServerError where the address is taken, or the data folder is in use or can't be used.
    """
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if settings.host not in _LOOPBACK and settings.api_key is None:
        _log.warning("listening on %s without API_KEY: whoever reaches this address may use it", settings.host)
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
        uvicorn.Server(config).run(sockets=[listener])


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
