"""No file, template, model folder or number of requests exhausts the server's memory or makes it unresponsive."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.harness import Server, pairs_file, until
from tests.tiny import build_tiny_tokenizer

MB = 1024**2
# `UPLOADS=200` is a realistic load; a few uploads have the same effect within a second.
UPLOADS = int(os.environ.get("UPLOADS", "15"))


@dataclass
class Watched:
    """The server's largest memory in MB and its slowest response to /health in seconds."""

    memory_mb: float = 0.0
    health_seconds: float = 0.0


@contextlib.contextmanager
def watched(server: Server) -> Iterator[Watched]:
    """Fail if the server takes 400 MB, or delays /health longer than a busy test machine explains."""
    assert server.process is not None
    process, seen, done = psutil.Process(server.process.pid), Watched(), threading.Event()

    def watch() -> None:
        with server.http() as http:
            # At least once, since a request may be refused before the first measurement.
            while True:
                began = time.monotonic()
                assert http.get("/health").status_code == 200
                seen.health_seconds = max(seen.health_seconds, time.monotonic() - began)
                seen.memory_mb = max(seen.memory_mb, process.memory_info().rss / MB)
                if done.wait(0.01):
                    return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        done.set()
        watching.join()
    print(f"at most {seen.memory_mb:.0f} MB and {1000 * seen.health_seconds:.0f} ms for /health")
    assert seen.memory_mb < 400
    assert seen.health_seconds < 10


def local(path: Path, **fields: Any) -> dict[str, Any]:
    return {"source": {"source_type": "local_file", "file_path": str(path)}, **fields}


def sparse(path: Path, head: bytes, size: int = 20 * 1024**3) -> Path:
    path.write_bytes(head)
    os.truncate(path, size)
    return path


def one_line(path: Path, head: str, unit: str, size: int, tail: str) -> Path:
    with path.open("w") as file:
        file.write(head)
        for _ in range(size // MB):
            file.write(unit * (MB // len(unit)))
        file.write(tail)
    return path


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "csv without a newline": (lambda root: sparse(root / "endless.csv", b"a,b\n"), "line 2 is larger than 16 MiB"),
    "100 MB line": (
        lambda root: one_line(root / "line.jsonl", '{"prompt": "', "x", 100 * MB, '"}\n'),
        "line 1 is larger than 16 MiB",
    ),
    "nested objects": (
        lambda root: one_line(root / "nested.jsonl", '{"prompt": [', '{"a":{}},', 14 * MB, "{}]}\n"),
        "line 1 contains more than 1,000,000 values",
    ),
    "sparse array": (lambda root: sparse(root / "endless.json", b"["), "row 1 is not valid JSON"),
}


@pytest.mark.parametrize(("write", "complaint"), FILES.values(), ids=FILES)
def test_a_file_that_would_fill_the_memory_is_refused(
    server: Server, write: Callable[[Path], Path], complaint: str
) -> None:
    file = write(server.root)
    train = {"base_model": "/nowhere", "output_name": "x", "dataset": local(file)}
    with watched(server), server.http() as http:
        for path in ("/dataset/preview", "/dataset/preview-formatted", "/dataset/columns"):
            response = http.post(path, json=local(file))
            assert (response.status_code, len(response.content) < 1000) == (400, True), response.text[:500]
            assert complaint in response.json()["detail"]
        assert any(complaint in error for error in http.post("/validate", json=train).json()["results"]["errors"])
        if file.stat().st_size < 200 * MB:
            with file.open("rb") as content:
                response = http.post("/dataset/upload-file", files={"file": (file.name, content)})
            assert (response.status_code, complaint in response.text) == (400, True)
    file.unlink()


def test_previews_of_large_rows_are_cut_to_a_small_response(server: Server) -> None:
    row = {"prompt": "\x01é" * 500_000, "chosen": "b" * 5_000_000, "rejected": "c", "list": list(range(100_000))}
    file = server.root / "large-rows.jsonl"
    file.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 10)
    with watched(server), server.http() as http:
        for path in ("/dataset/preview", "/dataset/preview-formatted", "/dataset/columns"):
            response = http.post(path, json=local(file))
            assert response.status_code == 200
            assert len(response.content) < MB
            assert "more characters)" in response.json()["samples"][0]["prompt"]
            assert response.json()["samples"][0]["rejected"].startswith("c")
    file.unlink()


def test_far_rows_and_searches_end_in_time_and_with_their_client(server: Server) -> None:
    file = server.root / "many-rows.jsonl"
    line = json.dumps({"prompt": "Why?" + " x" * 500, "chosen": "So.", "rejected": "No."}) + "\n"
    file.write_text(line * 200_000)
    with watched(server), server.http() as http:
        last = http.post("/dataset/preview-formatted", json=local(file), params={"row": 200_000})
        assert (last.status_code, last.json()["rows"][0]["row"]) == (200, 200_000)
        search = http.post("/dataset/preview-formatted", json=local(file), params={"only": "empty_side"}).json()
        assert search["rows"] == []
        assert search["next_row"] == search["rows_examined"] + 1 < 200_000
        for _ in range(4):
            with pytest.raises(httpx.ReadTimeout):
                http.post("/dataset/preview-formatted", json=local(file), params={"only": "empty_side"}, timeout=0.5)
        # The clients that disconnected do not occupy the four helpers that read rows.
        assert http.post("/dataset/preview", json=local(file), timeout=10).status_code == 200
    file.unlink()


def test_pipes_and_devices_are_no_data_sets(server: Server) -> None:
    zero, pipe = server.root / "zero.csv", server.root / "pipe.csv"
    zero.symlink_to("/dev/zero")
    os.mkfifo(pipe)
    with server.http() as http:
        assert http.post("/dataset/preview", json=local(zero)).status_code == 403
        assert http.post("/dataset/preview", json=local(pipe)).status_code == 404
        assert http.post("/configs/import", json={"filepath": str(pipe)}).status_code == 404


def model_with(folder: Path, template: str) -> Path:
    tokenizer = build_tiny_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


TEMPLATES = {
    "raises a book": ("{{ raise_exception('a' * 5000000) }}", "cannot render it: aaaa"),
    "fills the memory": ("{{ 'a' * 3000000000 }}", "exceeded its memory limit"),
    "has no end": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 2 s"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses infinitely"),
    "writes a book": ("{% for i in range(9999) %}{{ 'a' * 2000 }}{% endfor %}", "renders 19,998,000 characters"),
    "loops too far": ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
}


@pytest.mark.parametrize(("template", "complaint"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template_is_rendered_within_limits(
    server: Server, tmp_path: Path, template: str, complaint: str
) -> None:
    model = model_with(tmp_path / "model", template)
    body = local(pairs_file(server.root / "few.jsonl", 3), model_name=str(model), format={"format_type": "tokenizer"})
    with watched(server), server.http() as http:
        response = http.post("/dataset/preview-formatted", json=body)
        assert complaint in response.text
        assert len(response.content) < 5000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_models_file_of_20_gb_is_not_read(server: Server, tmp_path: Path, name: str) -> None:
    model = model_with(tmp_path / "model", "{{ messages }}")
    sparse(model / name, b"{")
    (model / "model.safetensors").write_bytes(b"weights")
    body = local(pairs_file(server.root / "few.jsonl", 3), format={"format_type": "tokenizer"})
    with watched(server), server.http() as http:
        preload = http.post("/model/preload", json={"model_name": str(model)})
        assert (preload.status_code, "21,474,836,480 bytes" in preload.text) == (400, True)
        checked = http.post("/validate", json={"base_model": str(model), "output_name": "x", "dataset": body}).json()
    assert any(name in error and "bytes" in error for error in checked["results"]["errors"])


# Run in a separate process, so that this one has free threads to measure the server's responses.
UPLOADING = """
import sys
from concurrent.futures import ThreadPoolExecutor
import httpx
url, count, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
content = open(file, "rb").read()
def upload(number):
    response = httpx.post(url + "/dataset/upload-file", files={"file": (f"{number}.jsonl", content)}, timeout=300)
    assert response.status_code == 200, response.text
    return response.json()["dataset_id"]
with ThreadPoolExecutor(count) as pool:
    print(*pool.map(upload, range(count)), sep="\\n")
"""


def test_many_uploads_leave_the_server_responsive(server: Server) -> None:
    file = server.root / "uploaded.jsonl"
    row = {"prompt": "a" * 1000, "chosen": "b" * 1000, "rejected": "c"}
    file.write_text((json.dumps(row) + "\n") * 500)
    command = [sys.executable, "-c", UPLOADING, server.url, str(UPLOADS), str(file)]
    slowest = 0.0
    with watched(server), server.http() as http:
        uploading = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while uploading.poll() is None:
            began = time.monotonic()
            assert http.get("/jobs").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.02)
        assert uploading.stdout is not None
        with uploading.stdout as said:
            uploaded = said.read().split()
        assert (uploading.returncode, len(uploaded)) == (0, UPLOADS)
        for dataset_id in uploaded:
            assert http.delete(f"/dataset/uploads/{dataset_id}").status_code == 200
    print(f"{UPLOADS} uploads: the slowest response to /jobs took {slowest:.3f} s")
    assert slowest < 10


def test_an_aborted_upload_is_one_line_in_the_log_and_leaves_no_file(server: Server) -> None:
    log, folder = server.root / "server.log", server.root / "data" / "uploads"
    logged, before = len(log.read_text()), set(folder.iterdir())
    head = (
        "POST /dataset/upload-file HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\n{"prompt": "half of'
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode())
        until(lambda: set(folder.iterdir()) != before, 10, "the upload's folder")
    until(lambda: "aborted by its client" in log.read_text()[logged:], 10, "the line in the log")
    until(lambda: set(folder.iterdir()) == before, 10, "the folder's removal")
    lines = [line for line in log.read_text()[logged:].splitlines() if "upload" in line or "Traceback" in line]
    assert len(lines) == 1
    assert " INFO " in lines[0]


@contextlib.contextmanager
def silent_hub() -> Iterator[str]:
    """An address that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_unresponsive_hub_delays_nothing_local(new_server: Callable[..., Server], tmp_path: Path) -> None:
    with silent_hub() as address:
        server = new_server(HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "cache"))
        few = local(pairs_file(server.root / "few.jsonl", 20))
        of_hub = {"source": {"source_type": "huggingface", "repo_id": "org/pairs"}}
        build_tiny_tokenizer(server.root / "tokenizer")
        formatted = {**few, "model_name": str(server.root / "tokenizer")}
        of_this_machine = [("/dataset/preview", few), ("/dataset/preview-formatted", formatted)]
        with server.http() as http, ThreadPoolExecutor(10) as pool:
            for path, body in of_this_machine:
                assert http.post(path, json=body).status_code == 200  # and its helper is running
            asked = [
                pool.submit(httpx.post, f"{server.url}/dataset/preview-formatted", json=body, timeout=60)
                for body in [of_hub, {**few, "model_name": "org/model"}] * 5
            ]
            taken = []
            for path, body in of_this_machine * 20:
                began = time.monotonic()
                assert http.post(path, json=body).status_code == 200
                taken.append(time.monotonic() - began)
            responses = [response.result() for response in asked]
        taken.sort()
        print(f"local previews beside ten hanging requests: median {taken[20]:.3f} s, p95 {taken[-3]:.3f} s")
        assert taken[-3] < 1
        for response in responses:
            assert response.status_code == 503
            assert f"The Hub cannot be reached at {address}" in response.json()["detail"]
            assert response.elapsed.total_seconds() < 5
