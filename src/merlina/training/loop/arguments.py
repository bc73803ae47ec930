"""The translation of a run's configuration into arguments of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from merlina.schemas.training.config import TrainingConfig


def trainer_arguments(
    config: TrainingConfig, folder: Path, *, evaluates: bool, resuming: bool, dtype: torch.dtype
) -> TrainingArguments:
    """Translate a configuration into the Trainer's arguments. Checkpoints are written to `folder`."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        # A batch holds all pairs of an optimizer step, which the loop divides into passes.
        per_device_train_batch_size=config.pairs_per_step,
        per_device_eval_batch_size=config.pairs_per_step,
        num_train_epochs=config.num_epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        # The loop creates its own schedule, see `merlina.step_plan`.
        lr_scheduler_type="constant",
        optim=config.optimizer_type,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=_fraction_or_steps(config.eval_steps) if evaluates else None,
        eval_on_start=evaluates and not resuming,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=_fraction_or_steps(config.save_steps) if config.save_steps else 500,
        # `merlina.checkpoints` removes older checkpoints once the new one is safely on disk.
        save_total_limit=None,
        logging_strategy="steps",
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        seed=config.seed,
        data_seed=config.seed,
        fp16=dtype == torch.float16,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def _fraction_or_steps(value: float) -> float:
    return value if value < 1 else int(value)
