"""Training throughput and peak memory against TRL: same model, pairs, LoRA, precision, optimizer, pairs per step.

    python benchmarks/train.py [--against trl] [--objective orpo] [--data FILE] [--model FOLDER] [--pairs 64]
                               [--rounds 2] [--peer-batch-size 1]

Each round runs both in separate processes, one after the other, over the same pairs in the same order, and alternates
which runs first. The first step of a run is a warm-up and is not counted. The output has one row for each run: tokens
per second (each prompt counts with both answers, independent of what is computed, so that the work is equal), the
largest resident set, and the loss of each step. The last two lines are the ratios of the medians.

TRL computes each pair's prompt twice and pads, so its best batch size is the one with the least padding;
--peer-batch-size sets another. The defaults are the demo's pairs and the demo's SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common  # noqa: F401  (makes the tests importable)

_PAIRS_PER_STEP = 8
_MAX_LENGTH, _MAX_PROMPT_LENGTH = 1024, 512
_LORA = {"r": 16, "lora_alpha": 32}
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LEARNING_RATE, _BETA = 1e-4, 0.1


def main() -> None:
    arguments = _arguments()
    if arguments.run:
        _run_one(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or demo_model_folder(Path(folder))
        pairs = _tokenized(arguments, model, Path(folder))
        runs: dict[str, list[dict[str, Any]]] = {"merlina": [], arguments.against: []}
        print(f"{'run':>9} {'tokens/s':>9} {'peak GB':>8}  losses", flush=True)
        for number in range(arguments.rounds):
            for who in sorted(runs, reverse=number % 2 == 1):
                found = run(who, model, pairs, arguments.objective, arguments.peer_batch_size)
                runs[who].append(found)
                losses = " ".join(f"{loss:.4f}" for loss in found["losses"])
                print(f"{who:>9} {found['tokens_per_second']:9.0f} {found['peak_gb']:8.2f}  {losses}", flush=True)
    ours, theirs = (
        {key: statistics.median(run[key] for run in runs[who]) for key in ("tokens_per_second", "peak_gb")}
        for who in ("merlina", arguments.against)
    )
    print(f"throughput ×{ours['tokens_per_second'] / theirs['tokens_per_second']:.2f}")
    print(f"memory ×{ours['peak_gb'] / theirs['peak_gb']:.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["trl"], default="trl")
    parser.add_argument("--objective", choices=["orpo", "dpo"], default="orpo")
    parser.add_argument("--data", type=Path, help="pairs in any row form")
    parser.add_argument("--model", type=Path, help="a model folder of transformers")
    parser.add_argument("--pairs", type=int, default=64, help="number of pairs, sampled evenly")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-batch-size", type=int, default=1, help="pairs in one forward pass of the peer")
    parser.add_argument("--run", choices=["merlina", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--ids", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def demo_model_folder(folder: Path) -> Path:
    """Write the demo's model to a folder, with weights in bfloat16."""
    import torch
    from memory_estimate import demo_model

    from merlina.training.models.loading import ModelSpec, load_model, load_tokenizer

    gguf = demo_model()
    model = load_model(ModelSpec(str(gguf), "bfloat16", None, "auto", folder)).to(torch.bfloat16)
    target = folder / "model"
    model.save_pretrained(target)
    load_tokenizer(str(gguf), None).save_pretrained(target)
    return target


def _tokenized(arguments: argparse.Namespace, model: Path, folder: Path) -> Path:
    """Write token ids of the pairs, encoded as in a run, to a file that both sides read."""
    from importlib.resources import files

    from merlina.data.conversation import Pair
    from merlina.data.dataset import read_pairs
    from merlina.schemas.datasets.config import DatasetConfig
    from merlina.training.models.loading import load_tokenizer
    from merlina.worker.encoding import PairEncoder

    file = arguments.data or Path(str(files("merlina") / "samples" / "wizard_pairs.jsonl"))
    dataset = DatasetConfig.model_validate({"source": {"source_type": "local_file", "file_path": str(file)}})
    pairs = [row for row in read_pairs(dataset, file, None) if isinstance(row, Pair)]
    encoder = PairEncoder(load_tokenizer(str(model), None), "model", dataset.format, _MAX_LENGTH, _MAX_PROMPT_LENGTH)
    taken = [pairs[index * len(pairs) // arguments.pairs] for index in range(min(arguments.pairs, len(pairs)))]
    ids = [encoder.encode(pair).tokens for pair in taken]
    path = folder / "ids.json"
    path.write_text(json.dumps([[pair.prompt, pair.chosen, pair.rejected] for pair in ids]))
    return path


def run(who: str, model: Path, pairs: Path, objective: str = "orpo", peer_batch_size: int = 1) -> dict[str, Any]:
    """Train on the pairs once in a separate process. Returns tokens_per_second, peak_gb and losses."""
    options = ["--objective", objective, "--peer-batch-size", str(peer_batch_size)]
    done = subprocess.run(
        [sys.executable, __file__, "--run", who, "--model", str(model), "--ids", str(pairs), *options],
        capture_output=True, text=True, check=False,
        env={"TRL_EXPERIMENTAL_SILENCE": "1", **os.environ},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run_one(arguments: argparse.Namespace) -> None:
    import psutil

    pairs = json.loads(arguments.ids.read_text())
    clock = _Clock()
    train = _run_merlina if arguments.run == "merlina" else _run_trl
    with tempfile.TemporaryDirectory() as folder:
        losses = train(arguments, pairs, clock, Path(folder))
    counted = pairs[_PAIRS_PER_STEP:]
    tokens = sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in counted)
    peak = _peak_bytes(psutil.Process().pid)
    print(json.dumps({"tokens_per_second": tokens / clock.seconds, "peak_gb": peak / 1e9, "losses": losses}))


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class _Clock:
    """Return the seconds from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self._first = self._last = 0.0

    def tick(self) -> None:
        self._last = time.perf_counter()
        self._first = self._first or self._last

    @property
    def seconds(self) -> float:
        return self._last - self._first


def _run_merlina(arguments: argparse.Namespace, pairs: list[Any], clock: _Clock, folder: Path) -> list[float]:
    import torch

    from merlina.schemas.training import TrainingConfig
    from merlina.training.loop.trainer import PreferenceTrainer
    from merlina.training.models.adapters import make_trainable
    from merlina.training.models.loading import ModelSpec, load_model
    from merlina.training.models.tokens import TokenPair

    class Listener:
        def __init__(self) -> None:
            self.losses: list[float] = []

        def progress(self, step: int, _total: int) -> None:
            if step:
                clock.tick()

        def metrics(self, _step: int, metrics: dict[str, float], **_: bool) -> None:
            self.losses.append(metrics["loss"])

        def checkpoint(self, _step: int, _path: Path) -> None: ...

        def model_selected(self, step: int) -> None: ...

        def note(self, level: str, message: str) -> None:
            if level == "warning":
                raise SystemExit(message)

        def should_stop(self) -> bool:
            return False

        def is_pausing(self) -> bool:
            return False

    config = TrainingConfig.model_validate(
        {
            "base_model": str(arguments.model), "output_name": "x",
            "dataset": {"source": {"source_type": "local_file", "file_path": "x"}},
            "training_mode": arguments.objective, "beta": _BETA, "use_4bit": False, "dtype": "bfloat16",
            "lora_r": _LORA["r"], "lora_alpha": _LORA["lora_alpha"], "lora_dropout": 0.0, "target_modules": _TARGETS,
            "learning_rate": _LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
            "optimizer_type": "adamw_torch", "max_grad_norm": 1.0, "num_epochs": 1, "shuffle_dataset": False,
            "batch_size": _PAIRS_PER_STEP, "gradient_accumulation_steps": 1, "max_length": _MAX_LENGTH,
            "max_prompt_length": _MAX_PROMPT_LENGTH, "eval_steps": 0, "save_steps": 0,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    spec = ModelSpec(config.base_model, config.dtype, None, "auto", folder)
    model = make_trainable(load_model(spec), config).model
    listener = Listener()
    trainer = PreferenceTrainer(
        model, config, training=[TokenPair(*pair) for pair in pairs], held_out=[], pad_id=0, dtype=torch.bfloat16,
        folder=folder, reporter=listener, resuming=False,
    )  # fmt: skip
    trainer.run(None)
    return listener.losses


def _run_trl(arguments: argparse.Namespace, pairs: list[Any], clock: _Clock, folder: Path) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": arguments.peer_batch_size,
        "gradient_accumulation_steps": _PAIRS_PER_STEP // arguments.peer_batch_size, "num_train_epochs": 1,
        "learning_rate": _LEARNING_RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0, "optim": "adamw_torch",
        "max_grad_norm": 1.0, "bf16": True, "use_cpu": not torch.cuda.is_available(), "max_length": _MAX_LENGTH,
        "report_to": "none", "logging_steps": 1, "save_strategy": "no", "beta": _BETA, "disable_tqdm": True,
        "activation_checkpointing": False,
    }  # fmt: skip
    if arguments.objective == "orpo":
        from trl.experimental.orpo import ORPOConfig as Settings
        from trl.experimental.orpo import ORPOTrainer as Peer

        rows = [_orpo_row(*pair) for pair in pairs]
    else:
        from trl import DPOConfig as Settings
        from trl import DPOTrainer as Peer

        settings["precompute_ref_log_probs"] = True
        rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]

    class InOrder(Peer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    model.config.use_cache = False
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, target_modules=_TARGETS, **_LORA)
    trainer = InOrder(
        model, args=Settings(**settings), peft_config=lora, callbacks=[Ticks()],
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
    )  # fmt: skip
    trainer.train_dataset = Dataset.from_list(rows)
    if arguments.objective == "dpo":
        trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", arguments.peer_batch_size)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def _orpo_row(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, list[int]]:
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        row[f"{name}_input_ids"] = prompt + answer
        row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{name}_labels"] = [-100] * len(prompt) + answer
    return row


if __name__ == "__main__":
    main()
