"""A server in a folder with files that have the names of modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server
from tests.system.test_recovery import Config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("spares", ["false", "true"])
def test_no_process_imports_from_the_folder_in_which_the_server_was_started(
    new_server: Callable[..., Server], config: Config, tmp_path: Path, spares: str
) -> None:
    for name in ("random", "tty", "json", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the folder was imported')\n")
    server = new_server(SPARE_PROCESSES=spares)
    content = config(server, "shadowed")
    with server.http() as http:
        # The helpers that read rows and that inspect the model, then the worker, then the chat process.
        columns = http.post("/dataset/columns", json={"source": content["dataset"]["source"]})
        assert columns.status_code == 200, columns.text
        report = http.post("/validate", json=content).json()
        assert report["valid"], report
        assert not [line for line in report["results"]["warnings"] if "could not be inspected" in line], report
        job = server.train(content)
        status = server.until_ended(job)
        assert (status.status, status.error) == ("completed", None)
        loaded = http.post("/chat/load", json={"job_id": job})
        assert loaded.status_code == 200, loaded.text
    logs = [server.root / "server.log", *(server.root / "data").rglob("*.log")]
    assert len(logs) > 2
    assert not [log for log in logs if "was imported" in log.read_text()]
