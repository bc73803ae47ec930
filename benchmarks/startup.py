"""Time and memory that the start of a process takes: a run's first optimizer step, and the first preview.

    python benchmarks/startup.py [--cold 3] [--warm 5]

Cold is the first request of a server that was just started. Warm are the requests after it, each made once all that
the server starts in advance is ready. "At once" are runs that begin as soon as the one before has ended. Memory is the
proportional set size of all processes below the server, so that a shared page counts once.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from common import (
    Server,
    build_tiny_model,
    pairs_file,
    process_of,
    server_with_spare_process,
    training_config,
    until,
)

from merlina.client import Client
from merlina.run_folder.event_log import read_events
from merlina.schemas.events import Progress
from merlina.schemas.training.config import TrainingConfig

_PARTS = ("started", "loading_dataset", "training", "first step")
_QUIET_SECONDS = 1.5
_QUIET_SHARE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=3, help="servers that are started")
    parser.add_argument("--warm", type=int, default=5, help="further runs and previews of the last of them")
    given = parser.parse_args()
    print("| run | " + " | ".join((*_PARTS, "processor")) + " |")
    print("| --- |" + " --- |" * (len(_PARTS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        measuring = _Measuring(Path(folder))
        for number in range(given.cold):
            with measuring.server(f"runs-{number}") as server:
                measuring.run(server, "cold")
                if number == given.cold - 1:
                    for _ in range(given.warm):
                        _settle(server)
                        measuring.run(server, "warm", settle=True)
                    for _ in range(given.warm):
                        measuring.run(server, "at once")
            with measuring.server(f"previews-{number}") as server:
                measuring.preview(server, "first preview")
                _settle(server)
                measuring.note("MB held after it", sum(_memory(server).values()))
                print(f"| {_memory(server)}", flush=True)
                _end_helpers(server)
                _settle(server)
                measuring.note("MB held without helpers", sum(_memory(server).values()))
                measuring.preview(server, "preview without helpers")
    measuring.print_medians()


class _Measuring:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = build_tiny_model(folder / "model")
        self._pairs = pairs_file(folder / "pairs.jsonl")
        self._found: dict[str, list[list[float]]] = {}
        self._runs = 0

    def server(self, name: str) -> _Started:
        root = self._folder / name
        root.mkdir()
        return _Started(server_with_spare_process(root, ALLOWED_PATHS=str(self._folder)))

    def run(self, server: Server, name: str, *, settle: bool = False) -> None:
        self._runs += 1
        used = _cpu_seconds(server)
        with server.client() as client:
            found = _seconds(client, server, self._model, self._pairs, f"run-{self._runs}")
        if settle:
            _settle(server)
        self.note(name, *found, _cpu_seconds(server) - used)

    def preview(self, server: Server, name: str) -> None:
        source = {"source_type": "local_file", "file_path": str(self._pairs)}
        body = {"source": source, "model_name": str(self._model), "format": {"format_type": "tokenizer"}}
        began = time.time()
        with server.http() as http:
            response = http.post("/dataset/preview-formatted", json=body)
        assert response.status_code == 200, response.text
        self.note(name, time.time() - began)

    def note(self, name: str, *values: float) -> None:
        self._found.setdefault(name, []).append(list(values))
        _print(name, values)

    def print_medians(self) -> None:
        for name, rows in self._found.items():
            _print(f"{name}, median of {len(rows)}", [statistics.median(c) for c in zip(*rows, strict=True)])


class _Started:
    def __init__(self, server: Server) -> None:
        self._server = server

    def __enter__(self) -> Server:
        return self._server.start()

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def _seconds(client: Client, server: Server, model: Path, pairs: Path, name: str) -> list[float]:
    """From the request to each of the parts."""
    config = TrainingConfig.model_validate(training_config(model, pairs, name, max_steps=1))
    asked = time.time()
    job_id = client.train(config).job_id
    while client.status(job_id).status not in ("completed", "failed"):
        time.sleep(0.05)
    events, _ = read_events(server.folder(job_id).events_file)
    times: dict[str, float] = {}
    for event in events:
        at = "first step" if isinstance(event, Progress) and event.step == 1 else getattr(event, "state", event.type)
        times.setdefault(at, event.time - asked)
    return [times[part] for part in _PARTS]


def _below(server: Server) -> list[psutil.Process]:
    return process_of(server).children(recursive=True)


def _cpu_seconds(server: Server) -> float:
    """Processor time that the server and all processes below it have used, those that have ended too."""
    used = 0.0
    for process in (process_of(server), *_below(server)):
        try:
            used += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    return used


def _settle(server: Server) -> None:
    """Wait until what was started in advance has been imported."""

    def is_quiet() -> bool:
        before = _cpu_seconds(server)
        time.sleep(_QUIET_SECONDS)
        return _cpu_seconds(server) - before < _QUIET_SHARE * _QUIET_SECONDS + 0.03

    until(is_quiet, 180, "a quiet server")


def _memory(server: Server) -> dict[str, float]:
    found: dict[str, float] = {}
    for process in _below(server):
        with contextlib.suppress(psutil.Error):
            name = " ".join(process.cmdline()[:2])
            found[f"{name} {process.pid}"] = round(process.memory_full_info().pss / 1e6)
    return found


def _end_helpers(server: Server) -> None:
    for process in _below(server):
        if "helper" in " ".join(process.cmdline()):
            process.kill()


def _print(name: str, figures: list[float] | tuple[float, ...]) -> None:
    print(f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
