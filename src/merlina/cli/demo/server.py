"""The server of the demo: a running one, or a new one in a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from merlina.client import Client
from merlina.errors import MerlinaError, ServerError
from merlina.executors.environment import python_module
from merlina.settings import Settings
from merlina.version import current

_HOST = "127.0.0.1"
# Generous, since a busy machine takes many times as long; a server that dies is detected at once.
_START_SECONDS = 600
_END_SECONDS = 300
_RESPONSE_SECONDS = 15
_MAX_PORTS = 20


@dataclass
class DemoServer:
    """A server that responds at `url`. `process` is None if it ran before the demo."""

    url: str
    process: subprocess.Popen[bytes] | None

    def stop(self) -> None:
        """End the server if the demo started it. Raises ServerError if it does not end properly."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            raise ServerError(f"The server did not end within {_END_SECONDS} s") from error
        if code not in (0, -signal.SIGTERM):
            raise ServerError(f"The server ended with exit code {code}")


def find_or_start(settings: Settings) -> DemoServer:
    """Return a running server of this version, or start one, at the settings' port or one of the next ports."""
    for port in range(settings.port, settings.port + _MAX_PORTS):
        url = f"http://{_HOST}:{port}"
        if _is_this_version(url):
            return DemoServer(url, None)
        if _is_free(port):
            return _start(port, url, settings.data_dir)
    raise ServerError(f"None of the {_MAX_PORTS} ports from {settings.port} is free; choose another with --port")


def _is_this_version(url: str) -> bool:
    with contextlib.suppress(MerlinaError), Client(url, timeout=_RESPONSE_SECONDS, retries=0) as client:
        return client.health().version == current().number
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return True
    return False


def _start(port: int, url: str, data_dir: Path) -> DemoServer:
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "server.log"
    command = [*python_module("merlina.cli.main"), "serve", "--host", _HOST, "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "DATA_DIR": str(data_dir)},
            start_new_session=True,
        )
    give_up_at = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up_at and process.poll() is None:
        if _is_this_version(url):
            return DemoServer(url, process)
        time.sleep(0.1)
    process.kill()
    last_line = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise ServerError(f"The server could not be started: {''.join(last_line) or 'no output'} (log: {log})")
