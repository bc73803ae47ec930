"""A case trained by Merlina's engine, without a server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cases import BETA, LEARNING_RATE, LORA, TARGETS, Case, Clock, Ids, Outcome, load_case_model


def merlina_config(case: Case) -> Any:
    """Return the configuration with which Merlina trains a case."""
    from merlina.schemas.training.config import TrainingConfig

    return TrainingConfig.model_validate(
        {
            "base_model": case.model, "output_name": "x",
            "dataset": {"source": {"source_type": "local_file", "file_path": "x"}},
            "training_mode": case.objective, "beta": BETA, "use_4bit": case.bits == 4, "dtype": "bfloat16",
            "lora_r": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_dropout": case.dropout,
            "target_modules": TARGETS, "gradient_checkpointing": case.checkpointing,
            "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
            "optimizer_type": "adamw_torch", "max_grad_norm": 1.0, "num_epochs": 1, "shuffle_dataset": False,
            "batch_size": case.pairs_per_step, "gradient_accumulation_steps": 1, "max_length": case.max_length,
            "max_prompt_length": case.max_length - 1, "eval_steps": 0, "save_steps": 0,
        }
    )  # fmt: skip


class _Listener:
    """A reporter that keeps losses, warnings and the size of the largest pass, and the time of each step."""

    def __init__(self, clock: Clock, found: Outcome) -> None:
        self._clock = clock
        self._found = found

    def progress(self, step: int, total_steps: int) -> None:  # noqa: ARG002
        if step:
            self._clock.tick()

    def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:  # noqa: ARG002
        self._found.losses.append(metrics["loss"])

    def checkpoint(self, step: int, path: Path) -> None: ...

    def model_selected(self, step: int) -> None: ...

    def note(self, level: str, message: str) -> None:
        if level == "warning":
            self._found.notes.append(message)
        elif size := re.match(r"The largest forward pass has ([\d,]+) positions", message):
            self._found.positions = int(size[1].replace(",", ""))

    def should_stop(self) -> bool:
        return False

    def is_pausing(self) -> bool:
        return False


def run_merlina(case: Case, pairs: list[Ids], clock: Clock, folder: Path, found: Outcome) -> None:
    """Train a case, and add losses, warnings and the size of the largest pass to `found`."""
    import torch

    from merlina.training.loop import trainer as loop
    from merlina.training.models.adapters import make_trainable
    from merlina.training.models.tokens import TokenPair

    config = merlina_config(case)
    torch.manual_seed(0)
    model = make_trainable(load_case_model(case, folder), config).model
    with _pack_positions(loop, case.positions):
        trainer = loop.PreferenceTrainer(
            model, config, training=[TokenPair(*pair, row) for row, pair in enumerate(pairs)], evaluation=[], pad_id=0,
            dtype=torch.bfloat16, folder=folder, reporter=_Listener(clock, found), resuming=False,
        )  # fmt: skip
    trainer.run(None)


@contextlib.contextmanager
def _pack_positions(loop: Any, positions: int | None) -> Iterator[None]:
    original = loop.pack_positions
    if positions is not None:
        loop.pack_positions = lambda *_, **__: positions
    try:
        yield
    finally:
        loop.pack_positions = original
