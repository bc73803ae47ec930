"""The loop: transformers' Trainer with our batches, log-probabilities and objectives, reporting to a Reporter.

The loss of an optimizer step is the mean over its pairs, whichever batches they came in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merlina.errors import TrainingError
from merlina.schemas.training import KEPT_CHECKPOINTS, TrainingConfig
from merlina.training import checkpoints
from merlina.training.batches import PairBatch, PairCollator, pairs_in, tokens_in
from merlina.training.logprobs import fast_path_agrees, pair_logprobs
from merlina.training.objectives import OBJECTIVES, PairLosses
from merlina.training.tokens import TokenPair

_GB = 1e9


class Reporter(Protocol):
    """Who is told how the training goes, and says when it should end."""

    def progress(self, step: int, total_steps: int) -> None:
        """An optimizer step was finished."""

    def metrics(self, step: int, figures: dict[str, float]) -> None:
        """The figures of a step, or of an evaluation after it (`eval_…`)."""

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is whole."""

    def note(self, level: str, message: str) -> None:
        """Something people should know; `level` is info or warning."""

    def should_stop(self) -> bool:
        """Asked after each optimizer step."""


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """Trains on pairs of token ids. `held_out` may be empty."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        *,
        training: Sequence[TokenPair],
        held_out: Sequence[TokenPair],
        pad_id: int,
        dtype: torch.dtype,
        folder: Path,
        reporter: Reporter,
        resuming: bool,
    ) -> None:
        self._config = config
        self._reporter = reporter
        self._objective = OBJECTIVES[config.training_mode]
        self._dtype = dtype
        self._figures = _Means()
        self._tokens = 0
        self._logged_at = time.monotonic()
        evaluates = bool(held_out) and config.eval_steps > 0
        super().__init__(
            model=model,
            args=training_arguments(config, folder, evaluates=evaluates, resuming=resuming, dtype=dtype),
            data_collator=PairCollator(pad_id),
            train_dataset=training,
            eval_dataset=held_out if evaluates else None,
            callbacks=[_Flow(reporter, folder, evaluates=evaluates)],
        )
        # Our compute_loss divides by the pairs of the whole step, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        self._plain = not fast_path_agrees(model, self._prepare_inputs(self.data_collator([training[0]])))
        if config.optimizer_type.startswith("paged") and not torch.cuda.is_available():
            reporter.note(
                "info", f"{config.optimizer_type}: without a GPU there is nothing to page to; its state stays in RAM"
            )
        if self._plain:
            reporter.note(
                "warning", "This model's output head is unusual: training builds all its logits, which is slower"
            )

    def run(self, checkpoint: Path | None) -> bool:
        """Trains to the end or to a stop, from a checkpoint where one is given. Returns whether it was stopped."""
        if checkpoint is not None and checkpoints.is_final(checkpoint):
            # The Trainer would take one step more than there are.
            self._load_from_checkpoint(str(checkpoint))
            return False
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return bool(self.state.global_step < self.state.max_steps)

    def compute_loss(
        self, model: nn.Module, inputs: PairBatch, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Tensor:
        """-> the batch's share of the step's mean loss."""
        assert not return_outputs
        losses = self._pair_losses(model, inputs)
        self._figures.add(losses.figures, pairs_in(inputs))
        self._tokens += tokens_in(inputs)
        return losses.loss.sum() / (num_items_in_batch or pairs_in(inputs))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Means over the held-out pairs, each pair weighing the same; none where a stop is asked for meanwhile."""
        means = _Means()
        self.model.eval()
        for inputs in self.get_eval_dataloader():
            if self._reporter.should_stop():
                self.model.train()
                return {}
            batch = self._prepare_inputs(inputs)
            with torch.no_grad():
                losses = self._pair_losses(self.model, batch)
            means.add({"loss": losses.loss, **losses.figures}, pairs_in(batch))
        self.model.train()
        figures = {f"eval_{name}": value for name, value in means.take().items()}
        self._reporter.metrics(self.state.global_step, figures)
        self._logged_at = time.monotonic()
        self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Reports a step's figures. Raises TrainingError where the loss is no number any more."""
        if "loss" not in logs:
            return
        loss, step = logs["loss"], self.state.global_step
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss became {loss} at step {step}: the training has diverged. "
                "Try a lower learning_rate, or a dtype of float32"
            )
        figures = {"loss": loss, **self._figures.take(), **self._speed(), **memory(), "epoch": self.state.epoch or 0.0}
        figures |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        self._reporter.metrics(step, figures)

    def _pair_losses(self, model: nn.Module, batch: PairBatch) -> PairLosses:
        with self._precision():
            logprobs = pair_logprobs(model, batch, plain=self._plain)
        return self._objective(logprobs, self._config.beta)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.args.device.type, dtype=self._dtype)

    def _speed(self) -> dict[str, float]:
        now = time.monotonic()
        speed = self._tokens / max(now - self._logged_at, 1e-9)
        self._tokens, self._logged_at = 0, now
        return {"tokens_per_second": speed}

    def _get_num_items_in_batch(self, batch_samples: list[PairBatch], device: torch.device) -> int:  # noqa: ARG002
        """The pairs of one optimizer step."""
        return sum(map(pairs_in, batch_samples))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if not self._config.shuffle_dataset:
            return SequentialSampler(self.train_dataset)
        sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
        return sampler


def training_arguments(
    config: TrainingConfig, folder: Path, *, evaluates: bool, resuming: bool, dtype: torch.dtype
) -> TrainingArguments:
    """Our configuration in the Trainer's words; checkpoints go into `folder`."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.num_epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,
        optim=config.optimizer_type,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=_share_or_count(config.eval_steps) if evaluates else None,
        eval_on_start=evaluates and not resuming,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=_share_or_count(config.save_steps) if config.save_steps else 500,
        save_total_limit=KEPT_CHECKPOINTS,
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


def memory() -> dict[str, float]:
    """What this process holds: peak GPU memory where there is a GPU, and resident RAM, in GB."""
    held = {"memory_gb": psutil.Process().memory_info().rss / _GB}
    if torch.cuda.is_available():
        held["gpu_memory"] = torch.cuda.max_memory_reserved() / _GB
    return held


def _share_or_count(value: float) -> float:
    return value if value < 1 else int(value)


class _Means:
    """Running means of per-pair figures; the sums stay on the device until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._pairs = 0

    def add(self, figures: dict[str, Tensor], pairs: int) -> None:
        for name, values in figures.items():
            total = values.detach().double().sum() if values.device.type == "cpu" else values.detach().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._pairs += pairs

    def take(self) -> dict[str, float]:
        means = {name: float(total) / max(self._pairs, 1) for name, total in self._sums.items()}
        self._sums, self._pairs = {}, 0
        return means


class _Flow(TrainerCallback):  # type: ignore[misc]
    """Progress and stop after each step, an evaluation after the last, a mark on each whole checkpoint."""

    def __init__(self, reporter: Reporter, folder: Path, *, evaluates: bool) -> None:
        self._reporter = reporter
        self._folder = folder
        self._evaluates = evaluates

    def on_train_begin(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        self._reporter.progress(state.global_step, state.max_steps)

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        self._reporter.progress(state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:
            control.should_evaluate = self._evaluates
            control.should_log = True
        elif self._reporter.should_stop():
            control.should_training_stop = True
            control.should_save = True
        return control

    def on_save(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        checkpoint = checkpoints.path_of(self._folder, state.global_step)
        checkpoints.mark_whole(checkpoint)
        self._reporter.checkpoint(state.global_step, checkpoint)
