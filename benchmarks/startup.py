"""Seconds from POST /train to the first optimizer step of a tiny model: cold, and warm.

    python benchmarks/startup.py [--runs 5]

Cold is the first run of a server that was just started: its fork server imports torch and transformers meanwhile. Warm
are the runs after it. The last line is the median of the warm ones.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, pairs = build_tiny_model(root / "model"), pairs_file(root / "pairs.jsonl")
        server = Server(root).start()
        try:
            with server.client() as client:
                found = [_seconds(client, server, model, pairs, number) for number in range(1 + runs)]
        finally:
            server.stop()
    print(f"cold {found[0]:.2f} s")
    print(f"warm {statistics.median(found[1:]):.2f} s")


def _seconds(client: Client, server: Server, model: Path, pairs: Path, number: int) -> float:
    config = TrainingConfig.model_validate(training_config(model, pairs, f"started-{number}", max_steps=1))
    asked = time.time()
    job_id = client.train(config).job_id
    while client.status(job_id).status not in ("completed", "failed"):
        time.sleep(0.05)
    events, _ = read_events(server.folder(job_id).events_file)
    times: dict[str, float] = {}
    for event in events:
        times.setdefault(getattr(event, "state", event.type), event.time)
    first = next(event.time for event in events if isinstance(event, Progress) and event.step == 1)
    parts = ", ".join(f"{name} {times[name] - asked:.2f}" for name in ("started", "loading_dataset", "training"))
    print(f"run {number}: {first - asked:.2f} s ({parts})", flush=True)
    return first - asked


if __name__ == "__main__":
    main()
