from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merlina.api.server import risks
from merlina.settings import Settings
from tests.harness import Server, until

pytestmark = pytest.mark.slow


def test_a_hangup_ends_the_server_properly(new_server: Callable[..., Server]) -> None:
    # If the tests run under nohup, they ignore the signal, and the server would inherit that.
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        server = new_server()
    finally:
        signal.signal(signal.SIGHUP, inherited)
    assert server.process
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(20) == 0
    assert "Application shutdown complete" in (server.root / "server.log").read_text()


def test_a_server_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-m", "merlina.cli.main", "serve", "--port", "0"]
    environment = {**os.environ, "DATA_DIR": str(tmp_path / "data"), "MODELS_DIR": str(tmp_path / "models")}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        until(lambda: "Application startup complete" in log.read_text(), 60, "the server's start")
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    finally:
        process.terminate()
        process.wait(20)


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


def test_a_server_warns_of_risky_settings(tmp_path: Path) -> None:
    assert risks(settings(), tmp_path) == []
    assert risks(settings(allowed_paths=[tmp_path], api_key="x" * 32, host="0.0.0.0"), Path("/")) == []
    assert "started in / without ALLOWED_PATHS" in risks(settings(), Path("/"))[0]
    (missing,) = risks(settings(allowed_paths=[tmp_path, tmp_path / "typo"]), tmp_path)
    assert f"{tmp_path / 'typo'} is not an existing folder" in missing
    assert "the whole disk" in risks(settings(allowed_paths=["/"]), tmp_path)[0]
    assert "without API_KEY" in risks(settings(host="0.0.0.0"), tmp_path)[0]
    assert "fewer than 16 characters" in risks(settings(api_key="sesame"), tmp_path)[0]
