"""On a full disk every operation is refused with 507 or carried out completely, and no job starts."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Server, add_running_job, pairs_file, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
NewServer = Callable[..., Server]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The data folder on a file system of its own."""
    data = tmp_path / "data"
    data.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", str(data)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield data
    subprocess.run(["umount", "-l", str(data)], check=True)


def fill(folder: Path) -> Path:
    """Fill the folder's file system; return the file that fills it."""
    file = folder / "filling"
    with file.open("wb", buffering=0) as filling:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    filling.write(bytes(size))
    assert shutil.disk_usage(folder).free == 0
    return file


def test_a_full_disk_is_507_and_changes_nothing(small_disk: Path, new_server: NewServer, tmp_path: Path) -> None:
    running = "job_20250101_000000"
    rows = pairs_file(tmp_path / "uploaded.jsonl").read_bytes()
    with add_running_job(tmp_path, running).locked():
        server = new_server()
        with server.http() as http:
            upload = http.post("/dataset/upload-file", files={"file": ("mine.jsonl", rows)}).json()["dataset_id"]
            filling = fill(small_disk)
            asked = [
                http.post(f"/jobs/{running}/stop"),
                http.delete(f"/dataset/uploads/{upload}"),
                http.post("/dataset/upload-file", files={"file": ("other.jsonl", rows)}),
            ]
            assert [response.status_code for response in asked] == [507] * 3
            assert all("disk is full" in response.json()["detail"] for response in asked[:2])
            assert http.get("/health").status_code == 200
            assert (small_disk / "uploads" / upload / "rows.jsonl").read_bytes() == rows
            assert not server.status(running).stop_requested
            filling.unlink()
            assert http.post(f"/jobs/{running}/stop").status_code == 200
            assert server.status(running).stop_requested


@pytest.mark.long
def test_a_full_disk_is_507_and_no_job_is_started_into_it(
    small_disk: Path, new_server: NewServer, config: Config, tmp_path: Path
) -> None:
    running = "job_20250101_000000"
    with add_running_job(tmp_path, running).locked():
        refused_with_507(small_disk, new_server(), config, running)


def refused_with_507(small_disk: Path, server: Server, config: Config, running: str) -> None:
    waiting = server.train(config(server, "waiting", max_steps=2))
    rows = pairs_file(server.root / "uploaded.jsonl").read_bytes()
    with server.http() as http:
        upload = http.post("/dataset/upload-file", files={"file": ("mine.jsonl", rows)}).json()["dataset_id"]
    filling = fill(small_disk)
    with server.http() as http:
        asked = {
            "pause": http.post(f"/jobs/{waiting}/pause"),
            "stop": http.post(f"/jobs/{waiting}/stop"),
            "delete": http.delete(f"/jobs/{waiting}"),
            "stop a running one": http.post(f"/jobs/{running}/stop"),
            "delete an upload": http.delete(f"/dataset/uploads/{upload}"),
        }
        assert {name: response.status_code for name, response in asked.items()} == dict.fromkeys(asked, 507)
        assert all("disk is full" in response.json()["detail"] for response in asked.values())
        refused = http.post("/train", json=config(server, "refused"))
        assert refused.status_code == 400
        assert any("is too full: 0 MiB are free" in error for error in refused.json()["detail"]["errors"])
        assert http.get("/health").status_code == 200
        assert (small_disk / "uploads" / upload / "rows.jsonl").read_bytes() == rows
        assert server.status(waiting).status == "queued"
        assert not server.status(running).stop_requested
        reason = http.get("/queue/jobs").json()["queued"][0]["waiting_for"]
        assert reason.startswith("disk space: 0 MiB are free in ")
        filling.unlink()
        assert http.post(f"/jobs/{running}/stop").status_code == 200
        assert server.status(running).stop_requested
        until(lambda: http.get("/queue/jobs").json()["queued"][0]["waiting_for"] == "a free slot", 20, "room again")
        assert http.post(f"/jobs/{waiting}/stop").status_code == 200
        assert server.status(waiting).status == "cancelled"
