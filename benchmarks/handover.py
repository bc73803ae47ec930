"""The cost of preemption: the seconds it takes, and whether it changes the trained adapter.

    python benchmarks/handover.py

A preemptible low-priority job trains on a server with one slot until a high-priority job is submitted. The output has
the seconds from the low job's last step to the high job's first, and from the high job's end to the low job's next
step. Then the adapters of the low job and of an uninterrupted one are compared bit for bit (float32, one thread).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import Server, build_tiny_model, pairs_file, server_with_spare_process, training_config
from safetensors.torch import load_file

from merlina.run_folder.event_log import read_events
from merlina.schemas.events import Ended, Event, Logged, Progress, Resumed

_LONG = {"max_steps": 400, "num_epochs": 1000, "save_steps": 50, "eval_steps": 0}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, pairs = build_tiny_model(root / "model"), pairs_file(root / "pairs.jsonl")
        server = server_with_spare_process(root).start()
        try:
            _measure(server, model, pairs)
        finally:
            server.stop()


def _measure(server: Server, model: Path, pairs: Path) -> None:
    alone = server.train({**training_config(model, pairs, "alone"), **_LONG})
    server.until_ended(alone)
    with server.http() as http:
        body = {**training_config(model, pairs, "low"), **_LONG}
        low = http.post("/train", json=body, params={"priority": "low", "preemptible": True}).json()["job_id"]
    server.until_step(low, 100)
    high = server.train({**training_config(model, pairs, "high"), "max_steps": 5, "eval_steps": 0}, "high")
    server.until_ended(high)
    server.until_ended(low)
    low_events, high_events = _events(server, low), _events(server, high)
    paused_at = next(
        event.time for event in low_events if isinstance(event, Logged) and event.message.startswith("Paused")
    )
    first = next(event.time for event in high_events if isinstance(event, Progress) and event.step)
    ended = next(event.time for event in high_events if isinstance(event, Ended))
    back = next(event for event in low_events if isinstance(event, Resumed))
    again = next(event.time for event in low_events if isinstance(event, Progress) and event.time > back.time + 1e-6)
    print(f"the low job's last step to the high job's first: {first - paused_at:.2f} s")
    print(f"the high job's end to the low job's next step: {again - ended:.2f} s")
    print(f"adapters are the same bit for bit: {_weights(server, 'low') == _weights(server, 'alone')}")


def _events(server: Server, job: str) -> list[Event]:
    return read_events(server.folder(job).events_file, limit_bytes=1 << 24)[0]


def _weights(server: Server, name: str) -> dict[str, Any]:
    tensors = load_file(server.root / "models" / name / "adapter_model.safetensors")
    return {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}


if __name__ == "__main__":
    main()
