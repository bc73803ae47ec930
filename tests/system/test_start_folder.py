"""A server in a folder with files that have the names of modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server, has_ended, until
from tests.system.test_recovery import Config, spare_process

pytestmark = pytest.mark.slow


def test_no_process_imports_from_the_folder_in_which_the_server_was_started(
    new_server: Callable[..., Server], config: Config, tmp_path: Path
) -> None:
    for name in ("random", "tty", "json", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the folder was imported')\n")
    server = new_server(SPARE_PROCESSES="true")
    content = config(server, "shadowed")
    with server.http() as http:
        # The helpers that read rows and that inspect the model, with which the first spare process starts.
        columns = http.post("/dataset/columns", json={"source": content["dataset"]["source"]})
        assert columns.status_code == 200, columns.text
        report = http.post("/validate", json=content).json()
        assert report["valid"], report
        assert not [line for line in report["results"]["warnings"] if "could not be inspected" in line], report
        # Once it has imported everything, the worker is started without it, and so is the chat process.
        end_spare(server, lambda title: title == "merlina spare")
        job = server.train(content)
        status = server.until_ended(job)
        assert (status.status, status.error) == ("completed", None)
        end_spare(server, lambda _: True)
        loaded = http.post("/chat/load", json={"job_id": job})
        assert loaded.status_code == 200, loaded.text
    logs = [server.root / "server.log", *(server.root / "data").rglob("*.log")]
    assert len(logs) > 2
    assert not [log for log in logs if "was imported" in log.read_text()]


def end_spare(server: Server, is_due: Callable[[str], bool]) -> None:
    """Wait until the title of the spare process is due, and end the process."""
    spare = until(lambda: spare_process(server), what="the spare process")
    until(lambda: is_due(" ".join(spare.cmdline()).strip()), what="the imports of the spare process")
    spare.kill()
    until(lambda: has_ended(spare), 5, "the end of the spare process")
