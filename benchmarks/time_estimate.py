"""The accuracy of the time estimate of /validate, compared with a run's time in the state `training`.

    python benchmarks/time_estimate.py [--model PATH] [--data FILE]

Each configuration is estimated twice: before any run, from the measured speed of the processor, and afterwards from the
newest run with the same precision. The defaults are the demo's SmolLM2-135M and the demo's pairs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from common import Server
from memory_estimate import demo_model

from merlina.client import Client
from merlina.run_folder.event_log import read_events
from merlina.samples import PAIRS
from merlina.schemas.events import StateChanged
from merlina.schemas.training.config import TrainingConfig

_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, gradient checkpointing": {"dtype": "bfloat16", "gradient_checkpointing": True},
    "bfloat16, dpo": {"dtype": "bfloat16", "training_mode": "dpo"},
    "bfloat16, sft": {"dtype": "bfloat16", "training_mode": "sft"},
    "bfloat16, evaluations": {"dtype": "bfloat16", "eval_steps": 2},
    "float32, every weight": {"use_lora": False, "optimizer_type": "adamw_torch"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=PAIRS)
    arguments = parser.parse_args()
    model = arguments.model or demo_model()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = {"OMP_NUM_THREADS": str(os.cpu_count()), "ALLOWED_PATHS": f"{root},{arguments.data.parent}"}
        server = Server(root, settings).start()
        try:
            with server.client() as client:
                _compare(client, server, model, arguments.data)
        finally:
            server.stop()


def _compare(client: Client, server: Server, model: Path, data: Path) -> None:
    configurations = {name: _configuration(model, data, changes) for name, changes in _CONFIGURATIONS.items()}
    alone = {name: _estimated(client, config) for name, config in configurations.items()}
    took = {name: _seconds(client, server, config) for name, config in configurations.items()}
    print(f"{'configuration':26} {'processor':>10} {'earlier':>8} {'took':>7}   ratios")
    for name, config in configurations.items():
        by_run = _estimated(client, config)
        ratios = f"{alone[name] / took[name]:.2f} {by_run / took[name]:.2f}"
        print(f"{name:26} {alone[name]:9.1f}s {by_run:7.1f}s {took[name]:6.1f}s   {ratios}")


def _configuration(model: Path, data: Path, changes: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "base_model": str(model),
            "output_name": "measured",
            "dataset": {"source": {"source_type": "local_file", "file_path": str(data)}, "test_size": 0.05},
            "use_4bit": False,
            "batch_size": 1,
            "gradient_accumulation_steps": 8,
            "max_steps": 12,
            "eval_steps": 0,
            "save_steps": 0,
            "max_length": 512,
            "max_prompt_length": 256,
            "lora_r": 16,
            **changes,
        }
    )


def _estimated(client: Client, config: TrainingConfig) -> float:
    found = client.validate(config).results.time
    assert found is not None
    return found.seconds


def _seconds(client: Client, server: Server, config: TrainingConfig) -> float:
    """Return the seconds that a run spends in the state `training`, without loading and saving."""
    job_id = client.train(config).job_id
    ended = server.until_ended(job_id, 1800)
    assert ended.status == "completed", ended.error
    events, _ = read_events(server.folder(job_id).events_file, 0)
    entered = {event.state: event.time for event in events if isinstance(event, StateChanged)}
    return entered["saving"] - entered["training"]


if __name__ == "__main__":
    main()
