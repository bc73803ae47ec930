"""Seconds and memory for previews of a large file: preview, formatted preview and columns of each format.

    python benchmarks/previews.py [--size-mb 2048]

Prints a row for each: seconds of the first call and of a second one, and by how many MB the server grew at most until
it responded. `columns` counts all rows on its first call, the others never do. The last row is an upload of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from common import Server, megabytes, process_of, server_with_spare_process

PATHS = ("/dataset/preview", "/dataset/preview-formatted", "/dataset/columns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=2048)
    size = parser.parse_args().size_mb * 1024**2
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print(f"{'file':10} {'work':28} {'first s':>8} {'again s':>8} {'MB more':>8}")
        for name, write in WRITERS.items():
            file = root / f"large.{name}"
            write(file, size)
            measure_file(root, file)
            file.unlink()


def rows(size: int) -> Iterator[dict[str, str]]:
    """Generate rows of about 2 KB, no two of them alike, `size` bytes in total."""
    for number in range(size // 2048):
        yield {
            "prompt": f"{number}: " + f"Why {number * 7919 % 10007}? " * 40,
            "chosen": f"Because {number * 104729 % 10007}. " * 45,
            "rejected": f"Who knows {number * 1299709 % 10007}, ever. " * 30,
        }


def write_jsonl(path: Path, size: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(size))


def write_json(path: Path, size: int) -> None:
    with path.open("w") as file:
        for number, row in enumerate(rows(size)):
            file.write(("," if number else "[") + json.dumps(row))
        file.write("]")


def write_csv(path: Path, size: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(rows(size))


def write_parquet(path: Path, size: int) -> None:
    """Write an uncompressed file with row groups of 100,000 rows, so that it is as large as the others."""
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        waiting: list[dict[str, str]] = []
        for row in rows(size):
            waiting.append(row)
            if len(waiting) == 100_000:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "json": write_json,
    "parquet": write_parquet,
}


def measure_file(root: Path, file: Path) -> None:
    """Measure each kind of work on a new server, so that none profits from caches of another."""
    body = {"source": {"source_type": "local_file", "file_path": str(file)}}
    for path in PATHS:
        with fresh_server(root, file) as server:
            seconds, grown = watched(server, partial(post, server, path, body))
            again, _ = watched(server, partial(post, server, path, body))
        print(f"{file.suffix[1:]:10} {path:28} {seconds:8.2f} {again:8.2f} {grown:8.0f}", flush=True)
    with fresh_server(root, file) as server:
        command = ["curl", "-sf", "-o", os.devnull, "-F", f"file=@{file}", f"{server.url}/dataset/upload-file"]
        seconds, grown = watched(server, lambda: subprocess.run(command, check=True))
    print(f"{file.suffix[1:]:10} {'upload':28} {seconds:8.2f} {'':8} {grown:8.0f}", flush=True)


@contextmanager
def fresh_server(root: Path, file: Path) -> Iterator[Server]:
    server = server_with_spare_process(root, MAX_UPLOAD_SIZE_MB=str(2 * file.stat().st_size // 1024**2)).start()
    try:
        yield server
    finally:
        server.stop()


def watched(server: Server, work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that the work took, and the rise of the server's memory in MB, sampled every 5 ms."""
    process, done = process_of(server), threading.Event()
    before = peak = megabytes(process)

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, megabytes(process))
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    done.set()
    watching.join()
    return seconds, peak - before


def post(server: Server, path: str, body: object) -> None:
    httpx.post(f"{server.url}{path}", json=body, timeout=300).raise_for_status()


if __name__ == "__main__":
    main()
