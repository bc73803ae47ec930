"""Response times of `/health` under load: an upload, previews of a large file, a job waiting and stopped.

    python benchmarks/responsiveness.py [--size-mb 1024]

Prints a row for each kind of work: requests to /health during it, their median, 99th percentile and maximum in ms, the
seconds the work took, and the server's resident memory at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

URL = "http://127.0.0.1:8765"
ROW = json.dumps({"prompt": "Why? " * 40, "chosen": "Because. " * 60, "rejected": "Who knows. " * 60}) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1024)
    size = parser.parse_args().size_mb
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        large = root / "large.jsonl"
        with large.open("w") as file:
            for _ in range(size * 1024**2 // len(ROW)):
                file.write(ROW)
        server = start(root, size)
        try:
            measure_all(server, root, large)
        finally:
            server.terminate()
            server.wait()


def start(root: Path, size: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ, "DATA_DIR": str(root / "data"), "MODELS_DIR": str(root / "models"), "ALLOWED_PATHS": str(root),
        "MAX_UPLOAD_SIZE_MB": str(2 * size), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    began = time.monotonic()
    command = [sys.executable, "-m", "merlina.cli.main", "serve", "--port", URL.rsplit(":", 1)[1]]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            httpx.get(f"{URL}/health").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.01)
    print(f"ready after {time.monotonic() - began:.2f} s, {memory(server):.0f} MB resident")
    return server


def measure_all(server: subprocess.Popen[bytes], root: Path, large: Path) -> None:
    print(f"{'work':<32}{'requests':>9}{'median':>8}{'p99':>8}{'max':>8}{'seconds':>9}{'MB':>7}")
    local = {"source": {"source_type": "local_file", "file_path": str(large)}}
    measure("nothing", server, lambda: time.sleep(3))
    measure("preview, 20 times", server, lambda: [post("/dataset/preview", local) for _ in range(20)])
    measure(
        "formatted preview, 20 times", server, lambda: [post("/dataset/preview-formatted", local) for _ in range(20)]
    )
    measure("upload", server, lambda: upload(large))
    config = {
        "base_model": str(tiny_model(root)), "output_name": "x", "dataset": local, "use_4bit": False,
        "max_length": 256, "max_prompt_length": 128,
    }  # fmt: skip
    jobs = [post("/train", config)["job_id"] for _ in range(2)]
    measure("status of a waiting job, 200x", server, lambda: [httpx.get(f"{URL}/status/{jobs[1]}") for _ in range(200)])
    measure("stop of it", server, lambda: post(f"/jobs/{jobs[1]}/stop"))
    measure("deletion of both", server, lambda: httpx.delete(f"{URL}/jobs").raise_for_status())


def measure(name: str, server: subprocess.Popen[bytes], work: Callable[[], object]) -> None:
    taken: list[float] = []
    done = threading.Event()
    asking = threading.Thread(target=ask, args=(taken, done))
    asking.start()
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    time.sleep(0.3)
    done.set()
    asking.join()
    taken.sort()
    p99 = taken[int(len(taken) * 0.99)]
    columns = f"{len(taken):>9}{statistics.median(taken):>8.1f}{p99:>8.1f}{taken[-1]:>8.1f}{seconds:>9.2f}"
    print(f"{name:<32}{columns}{memory(server):>7.0f}", flush=True)


def ask(taken: list[float], done: threading.Event) -> None:
    with httpx.Client() as client:
        while not done.is_set():
            began = time.monotonic()
            client.get(f"{URL}/health").raise_for_status()
            taken.append((time.monotonic() - began) * 1000)
            time.sleep(0.01)


def upload(path: Path) -> None:
    """Upload by curl, so that the threads of this process are free for requests."""
    command = ["curl", "-sf", "-o", os.devnull, "-F", f"file=@{path}", f"{URL}/dataset/upload-file"]
    subprocess.run(command, check=True)


def post(path: str, body: object = None) -> dict[str, str]:
    answer = httpx.post(f"{URL}{path}", json=body, timeout=60)
    answer.raise_for_status()
    content: dict[str, str] = answer.json()
    return content


def tiny_model(root: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny import build_tiny_model

    return build_tiny_model(root / "tiny")


def memory(server: subprocess.Popen[bytes]) -> float:
    return psutil.Process(server.pid).memory_info().rss / 1e6


if __name__ == "__main__":
    main()
