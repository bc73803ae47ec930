"""Seconds from POST /train to the first optimizer step of a tiny model: cold, and warm.

    python benchmarks/startup.py [--cold 3] [--warm 5]

Cold is the first run of a server that was just started, whose fork server is importing meanwhile. Warm are the runs
after it. One row a run, then the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import Server, build_tiny_model, pairs_file, training_config

from merlina.client import Client
from merlina.runs import read_events
from merlina.schemas.events import Progress
from merlina.schemas.training import TrainingConfig

_PARTS = ("started", "loading_dataset", "training", "first step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=3, help="servers that are started")
    parser.add_argument("--warm", type=int, default=5, help="further runs of the last of them")
    given = parser.parse_args()
    print("| run | " + " | ".join(_PARTS) + " |")
    print("| --- |" + " --- |" * len(_PARTS))
    with tempfile.TemporaryDirectory() as folder:
        model, pairs = build_tiny_model(Path(folder) / "model"), pairs_file(Path(folder) / "pairs.jsonl")
        cold: list[list[float]] = []
        warm: list[list[float]] = []
        for number in range(given.cold):
            root = Path(folder) / str(number)
            root.mkdir()
            server = Server(root, {"ALLOWED_PATHS": folder}).start()
            try:
                with server.client() as client:
                    cold.append(_seconds(client, server, model, pairs, "cold"))
                    if number == given.cold - 1:
                        warm = [_seconds(client, server, model, pairs, f"warm-{run}") for run in range(given.warm)]
            finally:
                server.stop()
    _print("cold, median", [statistics.median(column) for column in zip(*cold, strict=True)])
    _print("warm, median", [statistics.median(column) for column in zip(*warm, strict=True)])


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
    found = [times[part] for part in _PARTS]
    _print(name, found)
    return found


def _print(name: str, figures: list[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
