"""Runs the server until it receives a signal to end. Runs continue without it."""

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
_SHUTDOWN_SECONDS = 5
_MIN_KEY_LENGTH = 16


def serve(settings: Settings) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Raises ServerError if the address is in use, or if the data folder is in use or cannot be used.
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
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            # Messages are short: compressing each one per connection would cost more CPU time than it saves.
            ws_per_message_deflate=False,
        )
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _log.info("Merlina listens on %s%s", address, f", known as {settings.domain}" if settings.domain else "")
        server = uvicorn.Server(config)
        # Closing the terminal ends the server, unless nohup has set the signal to be ignored.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, server.handle_exit)
        server.run(sockets=[listener])


def risks(settings: Settings, folder: Path) -> list[str]:
    """Return a warning for each setting that may be a mistake in a server started in `folder`."""
    found = []
    if settings.host not in _LOOPBACK and settings.api_key is None:
        found.append(
            f"listening on {settings.host} without API_KEY: anyone who can reach this address can use the server"
        )
    if settings.api_key is not None and len(settings.api_key.get_secret_value()) < _MIN_KEY_LENGTH:
        found.append(f"API_KEY has fewer than {_MIN_KEY_LENGTH} characters and may be guessed; use a long random key")
    if not settings.allowed_paths and folder == Path(folder.anchor):
        found.append(f"started in {folder} without ALLOWED_PATHS: requests can read and write any file below it")
    for path in settings.allowed_paths:
        resolved = path.expanduser().resolve()
        if not resolved.is_dir():
            found.append(f"ALLOWED_PATHS: {path} is not an existing folder, so no request can use it")
        elif resolved == Path(resolved.anchor):
            found.append(f"ALLOWED_PATHS: {path} is the whole disk: requests can read and write any file below it")
    return found


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise ServerError(
            f"Cannot listen on {host}:{port}: {error.strerror}; choose another with --port or PORT"
        ) from error
    return listener
