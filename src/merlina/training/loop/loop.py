"""The loop: transformers' Trainer with our packs, log-probabilities and objectives, reporting to a Reporter.

A batch of the Trainer is all pairs of one optimizer step. The step's loss is the mean over its pairs, however they are
shared among ranks and cut into packs. Each rank has a Trainer of its own, which knows of no others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerState

from merlina import checkpoints
from merlina.domain.units import gib
from merlina.errors import TrainingError
from merlina.faults import FaultPoint, reach
from merlina.schemas.plan import rate_factor
from merlina.schemas.training import KEPT_CHECKPOINTS, OPTIMIZER_BYTES, PACK_POSITIONS, TrainingConfig
from merlina.training.distributed.ranks import SINGLE_PROCESS, Ranks
from merlina.training.distributed.sharding import is_sharded
from merlina.training.engine.fast_path import fast_path, shorten_for_trial
from merlina.training.engine.logprobs import Logprobs, unwrap
from merlina.training.engine.packing import Pack, PackedExample, build_pack
from merlina.training.engine.passes import PassPlanner, rope_length_limits
from merlina.training.loop.alarms import Alarms, check_losses
from merlina.training.loop.arguments import trainer_arguments
from merlina.training.loop.callbacks import ProgressCallback
from merlina.training.loop.early_stopping import EarlyStopping
from merlina.training.loop.gpu_memory import limited_gpu_memory
from merlina.training.loop.host_memory import keep_freed_memory
from merlina.training.loop.memory_probe import find_fitting_planner, hold_step_memory
from merlina.training.loop.metrics import MetricsWindow, RunningMeans, Throughput, memory
from merlina.training.loop.reference import BatchItem, reference_logprobs, unrelated_examples
from merlina.training.models.tokens import TokenPair
from merlina.training.objectives import OBJECTIVES, ObjectiveInputs, PairLosses
from merlina.training.reporter import Reporter, StoppedEarly

# Enough to tell one text's tokens from another's; all logits of whole pairs could be the run's largest array.
_TRIAL_PAIRS, _TRIAL_TOKENS = 2, 48
# For each rank, between two looks at whether a stop is asked for: shared by length, few would come out unequal.
_SHARED_PASSES = 4
_SECONDS_BETWEEN_NOTES = 60.0
_HELD_OUT = "held-out"


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
        ranks: Ranks = SINGLE_PROCESS,
        memory_limit: int | None = None,
    ) -> None:
        """`memory_limit` is in bytes of each GPU."""
        self._memory_limit = memory_limit
        self._config = config
        self._reporter = reporter
        self._ranks = ranks
        self._objective = OBJECTIVES[config.training_mode]
        self._dtype = dtype
        self._resuming = resuming
        self._saved_step: int | None = None
        self._window = MetricsWindow()
        self._speed = Throughput()
        evaluates = bool(held_out) and config.eval_steps > 0
        self._alarms = Alarms(reporter.note, has_evaluations=evaluates)
        self._early_stopping = EarlyStopping(config, folder, reporter.note)
        super().__init__(
            model=model,
            args=trainer_arguments(config, folder, evaluates=evaluates, resuming=resuming, dtype=dtype),
            data_collator=list,
            train_dataset=training,
            eval_dataset=held_out if evaluates else None,
            callbacks=[ProgressCallback(reporter, ranks, evaluates=evaluates), self._early_stopping],
        )
        ranks.broadcast_weights(weight for weight in model.parameters() if weight.requires_grad)
        # Our training_step divides by the pairs of the whole step, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        if self.args.device.type == "cpu":
            keep_freed_memory()
        trial, long_trial = self._trials([self._packed_example(pair) for pair in (*training, *held_out)])
        self._logprobs, reason = fast_path(
            model, trial, pad_id, config.attn_implementation, self._precision(), long_trial
        )
        passes = PassPlanner(
            self._logprobs.batching,
            PACK_POSITIONS.get(self.args.device.type, PACK_POSITIONS["cuda"]),
            ranks,
            ranks_in_lockstep=is_sharded(model),
            length_limits=rope_length_limits(unwrap(model).config),
        )
        self._passes = self._probe(passes, [self._packed_example(pair) for pair in (*training, *held_out)])
        self.train_dataset = self._items("training", training)
        self.eval_dataset = self._items(_HELD_OUT, held_out) if evaluates else None
        if config.optimizer_type.startswith("paged") and not torch.cuda.is_available():
            reporter.note(
                "info", f"{config.optimizer_type}: without a GPU there is nothing to page to; its state stays in RAM"
            )
        if reason is not None:
            reporter.note(
                "warning",
                f"This model {reason}: each prompt is computed once for each answer and all logits are built, which "
                "is slower and takes more memory",
            )

    def run(self, checkpoint: Path | None, *, evaluation: Mapping[str, float] | None = None) -> bool:
        """Train to the end or to a stop, from a checkpoint where one is given. Returns whether it was stopped.

        `evaluation` is what an earlier attempt measured at the checkpoint's step. Without it, that step is evaluated
        before training continues, if its evaluation is due.
        """
        if checkpoint is None:
            self.train()
        else:
            self._resume(checkpoint, evaluation or {})
        stopped = bool(self.state.global_step < self.state.max_steps) and not self._early_stopping.ended_early
        if not (stopped and self._ranks.from_first(self._reporter.is_pausing())):
            self._reporter.model_selected(self._take_best())
        return stopped

    def _resume(self, checkpoint: Path, evaluation: Mapping[str, float]) -> None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        is_due = self.eval_dataset is not None and not evaluation and checkpoints.evaluation_is_due(checkpoint)
        if is_due and not checkpoints.is_final(checkpoint):
            self._load(checkpoint, state)
            evaluation = self.evaluate()
            # Without metrics a stop is requested; a further step would leave this evaluation out.
            if self._early_stopping.ended_early or not evaluation:
                return
        self._early_stopping.recall(evaluation)
        if self._early_stopping.had_ended_early(state) or checkpoints.is_final(checkpoint):
            # The Trainer would take one step more than there are.
            self._load(checkpoint, state)
            return
        self._window.restore(checkpoint)
        self.train(resume_from_checkpoint=str(checkpoint))

    def _load(self, checkpoint: Path, state: TrainerState) -> None:
        self._load_from_checkpoint(str(checkpoint))
        self.state = state

    def _take_best(self) -> int:
        """Load the best evaluated model where that is wanted, also when the run was stopped.

        -> the step whose weights the model has
        """
        last, step = int(self.state.global_step), self.state.best_global_step
        if self._config.load_best_at_end is None or not step or step == last:
            return last
        best = checkpoints.path_of(Path(self.args.output_dir), step)
        self._ranks.barrier()
        lost = self._ranks.from_first(checkpoints.examine(best))
        if lost is not None:
            self._reporter.note(
                "warning",
                f"The saved model is that of step {last}: the best by {self._config.load_best_at_end} was that of step "
                f"{step}, but it is lost ({lost})",
            )
            return last
        self._load_from_checkpoint(str(best))
        self._reporter.note(
            "info",
            f"The saved model is that of step {step}, the best by {self._config.load_best_at_end} "
            f"({self.state.best_metric:.4f}), not that of step {self.state.global_step}",
        )
        return int(step)

    def training_step(
        self,
        model: nn.Module,
        inputs: list[BatchItem],
        num_items_in_batch: int | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Forward and backward passes of one optimizer step, pack by pack. -> its mean loss"""
        self._speed.start()
        model.train()
        step = self.state.global_step + 1
        each = torch.zeros(len(inputs), device=self.args.device)
        means = RunningMeans()
        with self._ranks.seeded_for_step(self._config.seed, step):
            divergence = self._divergence(inputs)
            for indices, counts in self._passes.for_rank([item.example for item in inputs]):
                losses = self._pair_losses([inputs[index] for index in indices], divergence)
                self.accelerator.backward(losses.loss.sum() * (counts / len(inputs)))
                if counts:
                    each[indices] = losses.loss.detach().float()
                    means.add(losses.metrics)
        self._ranks.sum(each)
        check_losses(step, [item.row for item in inputs], each.tolist())
        self._ranks.sum_gradients(model.parameters())
        means.gather(self._ranks, len(inputs))
        self._speed.add(sum(item.example.tokens for item in inputs))
        loss = each.mean()
        self._window.add(loss.item(), means)
        self._alarms.step(step, loss.item(), means.take())
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Replace transformers' schedules, whose first step has a rate of 0 where there is a warm-up."""
        config, warmup = self._config, math.ceil(num_training_steps * self._config.warmup_ratio)
        scheduler = LambdaLR(
            optimizer or self.optimizer, lambda taken: rate_factor(config, taken + 1, num_training_steps, warmup)
        )
        self.lr_scheduler: LambdaLR | None = scheduler
        self._created_lr_scheduler = True
        return scheduler

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Asked for before each optimizer step, whether gradients are clipped or not.

        Raises TrainingError before a step would write gradients that are no numbers into the weights.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        # In float16 a step that overflows is skipped and taken again at another scale.
        if self._dtype != torch.float16 and not math.isfinite(norm):
            raise TrainingError(
                f"The gradients became {float(norm)} in step {self.state.global_step + 1}, though the loss is a "
                "number. Try a lower learning_rate or a dtype of float32"
            )
        return norm

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """RunningMeans over the held-out pairs, each pair weighing the same; none where a stop is asked for meanwhile.

        One that is to go on later takes its evaluation to the end: a resume would not come by here again.
        """
        with self._speed.paused():
            metrics = self._held_out_means()
        if metrics:
            self._reporter.metrics(self.state.global_step, metrics)
            self._alarms.evaluation(self.state.global_step, metrics)
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_means(self) -> dict[str, float]:
        means, pairs = RunningMeans(), 0
        self.model.eval()
        for inputs in self.get_eval_dataloader():
            if self._ranks.from_first(self._reporter.should_stop() and not self._reporter.is_pausing()):
                self.model.train()
                return {}
            divergence = self._divergence(inputs)
            for indices, counts in self._passes.for_rank([item.example for item in inputs]):
                with torch.no_grad():
                    losses = self._pair_losses([inputs[index] for index in indices], divergence)
                if counts:
                    means.add({"loss": losses.loss, **losses.metrics})
            pairs += len(inputs)
        self.model.train()
        means.gather(self._ranks, pairs)
        return {f"eval_{name}": value for name, value in means.take().items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Reports the metrics of the steps since the last report."""
        if "loss" not in logs:
            return
        metrics = {
            **self._window.take(),
            "tokens_per_second": self._speed.take(),
            **memory(),
            "epoch": self.state.epoch or 0.0,
        }
        metrics |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        self._reporter.metrics(self.state.global_step, metrics, evaluation_follows=self.control.should_evaluate)

    def _trials(self, examples: Sequence[PackedExample]) -> tuple[Pack, Pack | None]:
        """Beginnings of the first pairs, and where others are longer, the longest one behind them."""
        beginnings = [_beginning(example) for example in examples[:_TRIAL_PAIRS]]
        longest = shorten_for_trial(unwrap(self.model).config, max(examples, key=_reach))
        is_longer = _reach(longest) > max(map(_reach, beginnings))
        return self._pack(beginnings), self._pack([*beginnings, longest]) if is_longer else None

    def _probe(self, passes: PassPlanner, examples: Sequence[PackedExample]) -> PassPlanner:
        """Forward and backward of the largest pack; neither gradients nor random numbers of it are left.

        -> passes that fit
        """
        # What is paged makes room on the GPU by itself.
        is_paged = self._config.optimizer_type.startswith("paged") and self.args.device.type == "cuda"
        state_bytes = 0.0 if is_paged else OPTIMIZER_BYTES[self._config.optimizer_type]
        has_gradients = self._config.pairs_per_step > 1

        def run(pack: Sequence[PackedExample]) -> None:
            with hold_step_memory(self.model.parameters(), state_bytes, has_gradients=has_gradients):
                with self._precision():
                    logprobs = self._logprobs(self._pack(pack))
                logprobs.sums.sum().backward()

        self.model.train()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        examples = passes.heaviest(examples, self._config.pairs_per_step)
        with torch.random.fork_rng(devices):
            passes = self._fit(passes, examples, run)
        positions = passes.batching.num_positions(passes.largest(examples))
        held = memory()
        on_gpu = f" and {held['gpu_memory']:.2f} GiB of the GPU's" if "gpu_memory" in held else ""
        self._reporter.note(
            "info",
            f"{positions:,} tokens in its largest forward pass, which was tried first and left "
            f"{held['memory_gib']:.2f} GiB of memory{on_gpu} in use",
        )
        return passes

    def _fit(
        self, passes: PassPlanner, examples: Sequence[PackedExample], run: Callable[[Sequence[PackedExample]], None]
    ) -> PassPlanner:
        """Use the memory that was reported, or all there is if the largest example needs more."""
        try:
            with limited_gpu_memory(self._memory_limit):
                return find_fitting_planner(passes, examples, run, self._reporter.note)
        except TrainingError:
            if self._memory_limit is None or self._ranks.count > 1:
                raise
        torch.cuda.empty_cache()
        self._reporter.note(
            "warning",
            f"The run needs more than the {gib(self._memory_limit)} of GPU memory that were reported before it began; "
            "it takes what it needs",
        )
        return find_fitting_planner(replace(passes, budget=0), examples, run, self._reporter.note)

    def _pair_losses(self, items: Sequence[BatchItem], divergence: Tensor | None) -> PairLosses:
        pack = self._pack([item.example for item in items])
        with self._precision():
            policy = self._logprobs(pack)
        return self._objective.loss(ObjectiveInputs(policy, _reference(items, policy), divergence), self._config)

    def _pack(self, examples: Sequence[PackedExample]) -> Pack:
        return build_pack(examples, with_prompt_targets=self._objective.needs_prompt_targets).to(self.args.device)

    def _packed_example(self, pair: TokenPair) -> PackedExample:
        answers = (pair.chosen, pair.rejected) if self._config.needs_rejected else (pair.chosen,)
        return PackedExample(pair.prompt, answers)

    def _items(self, name: str, pairs: Sequence[TokenPair]) -> list[BatchItem]:
        """With what the objective needs of the reference."""
        examples = [self._packed_example(pair) for pair in pairs]
        rows = [pair.row for pair in pairs]
        if not self._objective.needs_reference:
            return [BatchItem(example, row) for example, row in zip(examples, rows, strict=True)]
        evaluated = name == _HELD_OUT
        known = self._reference_logprobs(name, examples, evaluated=evaluated)
        if not self._objective.needs_divergence:
            return [BatchItem(*column) for column in zip(examples, rows, known, strict=True)]
        unrelated = unrelated_examples(examples, self._config.max_length)
        of_unrelated = self._reference_logprobs(f"{name}-unrelated", unrelated, evaluated=evaluated)
        columns = zip(examples, rows, known, unrelated, of_unrelated[:, 0], strict=True)
        return [BatchItem(*column) for column in columns]

    def _reference_logprobs(self, name: str, examples: Sequence[PackedExample], *, evaluated: bool) -> Tensor:
        folder = Path(self.args.output_dir)
        return reference_logprobs(
            name,
            examples,
            partial(self._answer_logprobs_until_stopped, evaluated=evaluated),
            self.model,
            folder,
            resuming=self._resuming,
            keeps=self._ranks.is_first,
        )

    def _answer_logprobs_until_stopped(
        self, examples: Sequence[PackedExample], *, evaluated: bool
    ) -> Iterator[tuple[list[int], Tensor]]:
        """A few passes at a time, told of where it takes minutes. Raises StoppedEarly where a stop is asked for."""
        groups = self._evaluation_batches(len(examples)) if evaluated else self._groups_of_passes(examples)
        told_at, done = time.monotonic(), 0
        for indices in groups:
            if self._ranks.from_first(self._reporter.should_stop()):
                raise StoppedEarly
            if time.monotonic() - told_at > _SECONDS_BETWEEN_NOTES:
                told_at = time.monotonic()
                self._reporter.note(
                    "info",
                    f"The untrained model's log-probabilities of {done:,} of {len(examples):,} pairs are computed",
                )
            yield indices, self._answer_logprobs([examples[index] for index in indices])
            done += len(indices)

    def _evaluation_batches(self, count: int) -> list[list[int]]:
        """The pairs that an evaluation passes through the model together.

        A reference computed in the same passes equals an untrained policy bit for bit: before training, every reward
        is exactly 0 and every pair a tie.
        """
        size = self.args.per_device_eval_batch_size
        return [list(range(begin, min(begin + size, count))) for begin in range(0, count, size)]

    def _groups_of_passes(self, examples: Sequence[PackedExample]) -> list[list[int]]:
        passes = self._passes.split(examples)
        some = 1 if self._ranks.count == 1 else _SHARED_PASSES * self._ranks.count
        groups = (passes[number : number + some] for number in range(0, len(passes), some))
        return [[index for one in group for index in one] for group in groups]

    @torch.no_grad()
    def _answer_logprobs(self, examples: Sequence[PackedExample]) -> Tensor:
        """-> [U, A], each rank having computed its share"""
        found = torch.zeros(len(examples), len(examples[0].answers), device=self.args.device)
        for indices, counts in self._passes.for_rank(examples):
            with self._precision():
                logprobs = self._logprobs(self._pack([examples[index] for index in indices]))
            if counts:
                found[indices] = logprobs.sums[:, 1:]
        self._ranks.sum(found)
        return found

    def _divergence(self, items: Sequence[BatchItem]) -> Tensor | None:
        """Mean log ratio of model and reference on answers that belong to other prompts."""
        examples = [item.unrelated for item in items if item.unrelated is not None]
        if not examples:
            return None
        known = [item.unrelated_reference for item in items if item.unrelated_reference is not None]
        return (self._answer_logprobs(examples)[:, 0] - torch.stack(known).to(self.args.device)).mean()

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.args.device.type, dtype=self._dtype)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write, sync and mark a checkpoint, report it, and only then remove older ones (see merlina.checkpoints).

        The Trainer removes older ones before the new one is on the disk; `save_total_limit` is unset to prevent that.
        """
        step, folder = self.state.global_step, Path(self.args.output_dir)
        if not self._ranks.is_first or step == self._saved_step:
            return
        path = checkpoints.path_of(folder, step)
        checkpoints.remove(path)
        reach(FaultPoint.SAVE_BEGUN)
        super()._save_checkpoint(model, trial)
        self._window.save(path)
        reach(FaultPoint.SAVE_WRITTEN)
        checkpoints.seal(path, self.state.best_global_step if self._config.load_best_at_end else None)
        self._saved_step = step
        self._reporter.checkpoint(step, path)
        reach(FaultPoint.SAVE_REPORTED)
        checkpoints.rotate(folder, KEPT_CHECKPOINTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        reach(FaultPoint.SAVE_MODEL_WRITTEN)
        super()._save_optimizer_and_scheduler(output_dir)
        reach(FaultPoint.SAVE_OPTIMIZER_WRITTEN)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if not self._config.shuffle_dataset:
            return SequentialSampler(self.train_dataset)
        sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
        return sampler


def _reference(items: Sequence[BatchItem], policy: Logprobs) -> Logprobs | None:
    """In the policy's shape; the prompt's column is nobody's business."""
    known = [item.reference for item in items if item.reference is not None]
    if not known:
        return None
    sums = torch.zeros_like(policy.sums)
    sums[:, 1:] = torch.stack(known)
    return Logprobs(sums, policy.tokens)


def _reach(example: PackedExample) -> int:
    return len(example.prompt) + max(map(len, example.answers))


def _beginning(example: PackedExample) -> PackedExample:
    return PackedExample(example.prompt[:_TRIAL_TOKENS], tuple(answer[:_TRIAL_TOKENS] for answer in example.answers))
