"""The training loop: transformers' Trainer with our passes, log-probabilities and objectives, reporting to a Reporter.

A batch of the Trainer holds all pairs of one optimizer step. The loss of a step is the mean over its pairs, however
they are shared among ranks and divided into passes:

    a step of pairs 0, 1, 2 with losses 0.9, 0.3, 0.6        step loss 0.6

    rank 0   pass 1   pair 0    backward of 0.9 / 3
             pass 2   pair 2    backward of 0.6 / 3
    rank 1   pass 1   pair 1    backward of 0.3 / 3
             pass 2   filler    backward of 0, only if ranks are in lockstep

    Gradients accumulate over the passes of a rank and are then summed over ranks, which gives the gradient of the mean
    over all pairs. An average over ranks would weight pair 1 twice as much as pairs 0 and 2.

Each rank has its own Trainer, which does not know about the others.

What is overridden, in the order of a run. Private hooks may change in any release of transformers, so pyproject.toml
has an upper bound that `tests/training/test_trainer_hooks.py` compares with this list:

    _get_train_sampler               pairs in their order if shuffle_dataset is off
    create_scheduler                 our schedule, with a learning rate above 0 in the first step
    training_step                    forward and backward passes of a step
    floating_point_ops               none are counted
    _clip_grad_norm                  of the trained weights alone
    _get_grad_norm                   an error before gradients that are not finite are applied
    log                              metrics of the steps since the last report
    evaluate                         means over the evaluation sets
    _save_checkpoint                 write, sync, write the manifest, report; then remove older ones
    _save_optimizer_and_scheduler    fault points

The model's own `zero_grad`, which the Trainer calls after each step, is replaced as well.

Private members that are used without being overridden: `_load_from_checkpoint` (weights of a checkpoint) and
`_created_lr_scheduler` (makes the Trainer discard the scheduler before it trains again).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerState

from merlina import checkpoints
from merlina.domain.run_sizes import KEPT_CHECKPOINTS
from merlina.errors import TrainingError
from merlina.faults import FaultPoint, reach
from merlina.schemas.training.config import TrainingConfig
from merlina.step_plan import rate_factor
from merlina.training.distributed.ranks import SINGLE_PROCESS, Ranks
from merlina.training.engine.kernel_choice import kernel_obstacle
from merlina.training.evaluation_sets import EvaluationSet
from merlina.training.loop.alarms import Alarms, check_losses
from merlina.training.loop.arguments import trainer_arguments
from merlina.training.loop.batch_item import BatchItem
from merlina.training.loop.batch_items import BatchItems
from merlina.training.loop.callbacks import ProgressCallback
from merlina.training.loop.early_stopping import EarlyStopping
from merlina.training.loop.glibc_allocator import keep_freed_memory
from merlina.training.loop.metrics import (
    MetricsWindow,
    RunningMeans,
    Throughput,
    evaluation_metrics,
    memory_metrics,
)
from merlina.training.loop.pass_runner import Packer
from merlina.training.loop.pass_selection import select_passes
from merlina.training.models.token_store import largest_pairs
from merlina.training.models.tokens import TokenPair
from merlina.training.reporter import Reporter


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """Trains a model on pairs of token ids and evaluates it on the sets of `evaluation`, of which there may be none.

    `memory_limit` is in bytes for each GPU. Raises TrainingError if the largest pass does not fit or a resume lacks the
    stored reference, and StoppedEarly if a stop is requested while the reference is computed.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        *,
        training: Sequence[TokenPair],
        evaluation: Sequence[EvaluationSet],
        pad_id: int,
        dtype: torch.dtype,
        folder: Path,
        reporter: Reporter,
        resuming: bool,
        ranks: Ranks = SINGLE_PROCESS,
        memory_limit: int | None = None,
    ) -> None:
        self._config = config
        self._reporter = reporter
        self._ranks = ranks
        self._dtype = dtype
        self._saved_step: int | None = None
        self._window = MetricsWindow()
        self._throughput = Throughput()
        evaluates = bool(evaluation) and config.eval_steps > 0
        self._alarms = Alarms(reporter.note, has_evaluations=evaluates)
        self._early_stopping = EarlyStopping(config, folder, reporter.note)
        super().__init__(
            model=model,
            args=trainer_arguments(config, folder, evaluates=evaluates, resuming=resuming, dtype=dtype),
            data_collator=list,
            train_dataset=training,
            eval_dataset=list(evaluation) if evaluates else None,
            callbacks=[ProgressCallback(reporter, ranks, evaluates=evaluates), self._early_stopping],
        )
        # Adapters are initialized at random on each rank.
        self._trained = [weight for weight in model.parameters() if weight.requires_grad]
        ranks.broadcast_weights(self._trained)
        # The Trainer calls this in each step, and the model's own method visits all of its modules.
        model.zero_grad = partial(_drop_gradients, self._trained)  # type: ignore[method-assign]
        # training_step divides by the pairs of the whole step, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        if self.args.device.type == "cpu":
            keep_freed_memory()
        pairs = [pair for pairs in (training, *(each.pairs for each in evaluation)) for pair in largest_pairs(pairs)]
        # The pairs of evaluation sets are part of trial and probe, so that no evaluation fails later.
        packer = Packer(config, self.args.device, dtype)
        self._runner, reason = select_passes(self.model, pairs, pad_id, packer, ranks, memory_limit, reporter)
        items = BatchItems(self._runner, model, folder, reporter, resuming=resuming)
        self.train_dataset = items.training(training)
        self._evaluation = {each.name: items.evaluation(each) for each in evaluation if evaluates}
        if config.optimizer_type.startswith("paged") and not torch.cuda.is_available():
            reporter.note("info", f"{config.optimizer_type}: without a GPU its state is not paged and stays in RAM")
        obstacle = kernel_obstacle(self.args.device)
        if obstacle is not None:
            reporter.note("warning", f"The GPU kernels {obstacle}: slower operations of torch are used")
        if reason is not None:
            reporter.note(
                "warning",
                f"This model {reason}: each prompt is computed once for each answer and all logits are built, which "
                "is slower and takes more memory",
            )

    def run(self, checkpoint: Path | None, *, evaluation: Mapping[str, float] | None = None) -> bool:
        """Train to the end or to a stop, from a checkpoint if one is given. Returns whether the run was stopped.

        `evaluation` holds the metrics that an earlier attempt measured at the checkpoint's step. Without it, that step
        is evaluated before training continues, if its evaluation is due.
        """
        if checkpoint is None:
            self.train()
        else:
            self._resume(checkpoint, evaluation or {})
        stopped = bool(self.state.global_step < self.state.max_steps) and not self._early_stopping.ended_early
        # A paused run continues from its newest weights, so the best ones are not loaded.
        if not (stopped and self._ranks.broadcast_from_first(self._reporter.is_pausing())):
            self._reporter.model_selected(self._load_best())
        return stopped

    def _resume(self, checkpoint: Path, evaluation: Mapping[str, float]) -> None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        is_due = self._evaluation and not evaluation and checkpoints.evaluation_is_due(checkpoint)
        if is_due and not checkpoints.is_final(checkpoint):
            self._load(checkpoint, state)
            self._early_stopping.forget_lost_best(state)
            evaluation = self.evaluate()
            # No metrics mean that a stop was requested; a further step would skip this evaluation.
            if self._early_stopping.ended_early or not evaluation:
                return
        self._early_stopping.recall(evaluation)
        if self._early_stopping.had_ended_early(state) or checkpoints.is_final(checkpoint):
            # Resumed after its last step, the Trainer would take one step too many.
            self._load(checkpoint, state)
            return
        # Steps since the last report belong to the next one, as without the interruption.
        self._window.restore(checkpoint)
        self.train(resume_from_checkpoint=str(checkpoint))

    def _load(self, checkpoint: Path, state: TrainerState) -> None:
        self._load_from_checkpoint(str(checkpoint))
        self.state = state

    def _load_best(self) -> int:
        """Load the best evaluated model if `load_best_at_end` is set. Returns the step of the model's weights."""
        last, step = int(self.state.global_step), self.state.best_global_step
        if self._config.load_best_at_end is None or not step or step == last:
            return last
        best = checkpoints.path_of(Path(self.args.output_dir), step)
        # The first rank may still be writing the checkpoint.
        self._ranks.barrier()
        lost = self._ranks.broadcast_from_first(checkpoints.check_checkpoint(best))
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
        inputs: Sequence[BatchItem],
        num_items_in_batch: int | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Run the forward and backward passes of one optimizer step. Returns its mean loss, a scalar."""
        self._throughput.start()
        # Setting the mode visits every module of the model, which takes milliseconds.
        if not model.training:
            model.train()
        step = self.state.global_step + 1
        # [pairs of the step], zero for pairs of other ranks until the sum
        pair_losses = torch.zeros(len(inputs), device=self.args.device)
        means = RunningMeans()
        with self._ranks.seeded_for_step(self._config.seed, step), self._runner.unchanged_weights():
            divergence = self._runner.divergence(inputs)
            inputs = self._runner.with_noise(inputs, step)
            for indices, is_filler in self._runner.planner.for_rank([item.example for item in inputs]):
                losses = self._runner.pair_losses([inputs[index] for index in indices], divergence)
                # A filler pass is multiplied by 0: it runs the same collectives and adds no gradient.
                self.accelerator.backward(losses.loss.sum() * ((not is_filler) / len(inputs)))
                if not is_filler:
                    pair_losses[indices] = losses.loss.detach().float()
                    means.add(losses.metrics)
        # Summed over ranks before the check, so that its error names the rows of all of them.
        self._ranks.sum(pair_losses)
        losses_by_pair = pair_losses.tolist()
        check_losses(step, [item.row for item in inputs], losses_by_pair)
        self._ranks.sum_gradients(self._trained)
        means.gather(self._ranks, len(inputs))
        self._throughput.add(sum(item.example.num_tokens for item in inputs))
        # All ranks have the same losses now, hence the same mean.
        loss = statistics.fmean(losses_by_pair)
        self._window.add(loss, means)
        self._alarms.step(step, loss, means.take())
        return pair_losses.mean()

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Return 0: operations are not counted, since that would visit every weight of the model in each step."""
        return 0

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:  # noqa: ARG002
        """Clip the gradients of the trained weights, which the Trainer would look for in the whole model each time."""
        self.accelerator.unscale_gradients()
        return nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Replace transformers' schedules, which have a learning rate of 0 in the first step if there is a warm-up."""
        config, warmup = self._config, math.ceil(num_training_steps * self._config.warmup_ratio)
        # LambdaLR passes the number of steps already taken; rate_factor counts steps from 1.
        scheduler = LambdaLR(
            optimizer or self.optimizer, lambda taken: rate_factor(config, taken + 1, num_training_steps, warmup)
        )
        self.lr_scheduler: LambdaLR | None = scheduler
        self._created_lr_scheduler = True
        return scheduler

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:  # noqa: ARG002
        """Return the gradient norm. The Trainer calls this before each optimizer step, with or without clipping.

        Raises TrainingError before gradients that are not finite would be applied to the weights.
        """
        norm = grad_norm
        if norm is None:
            self.accelerator.unscale_gradients()
            norm = nn.utils.get_total_norm([weight.grad for weight in self._trained if weight.grad is not None])
        # In float16, a step that overflows is skipped and repeated with another loss scale.
        if self._dtype != torch.float16 and not math.isfinite(norm):
            raise TrainingError(
                f"The gradients became {float(norm)} in step {self.state.global_step + 1}, though the loss is finite. "
                "Try a lower learning_rate or a dtype of float32"
            )
        return norm

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Report and return the means over all evaluation sets; empty if a stop is requested meanwhile.

        All pairs have the same weight. An evaluation is completed before a pause, since a resume does not repeat it.
        """
        with self._throughput.paused():
            metrics = self._evaluation_metrics()
        if metrics:
            self._reporter.metrics(self.state.global_step, metrics)
            self._alarms.evaluation(self.state.global_step, metrics)
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluation_metrics(self) -> dict[str, float]:
        """Return the metrics of an evaluation; empty if a stop is requested meanwhile."""
        found = {}
        for name, items in self._evaluation.items():
            means = self._means_over(items)
            if means is None:
                return {}
            found[name] = means
        return evaluation_metrics(found)

    def _means_over(self, items: Sequence[BatchItem]) -> RunningMeans | None:
        """Return the means over one set; None if a stop is requested meanwhile."""
        means, pairs = RunningMeans(), 0
        self.model.eval()
        for inputs in self.get_eval_dataloader(items):
            if self._ranks.broadcast_from_first(self._reporter.should_stop() and not self._reporter.is_pausing()):
                self.model.train()
                return None
            with torch.no_grad(), self._runner.unchanged_weights():
                divergence = self._runner.divergence(inputs)
                for indices, is_filler in self._runner.planner.for_rank([item.example for item in inputs]):
                    losses = self._runner.pair_losses([inputs[index] for index in indices], divergence)
                    if not is_filler:
                        means.add({"loss": losses.loss, **losses.metrics})
            pairs += len(inputs)
        self.model.train()
        means.gather(self._ranks, pairs)
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Report the metrics of the steps since the last report."""
        # The Trainer also logs a summary at the end, without a loss.
        if "loss" not in logs:
            return
        metrics = {
            **self._window.take(),
            "tokens_per_second": self._throughput.take(),
            **memory_metrics(),
            "epoch": self.state.epoch or 0.0,
        }
        metrics |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        self._reporter.metrics(self.state.global_step, metrics, awaits_evaluation=self.control.should_evaluate)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write and sync a checkpoint and its manifest, report it, and only then remove older ones (see `checkpoints`).

        The Trainer would remove older ones before the new one is on disk; `save_total_limit` is unset to prevent that.
        """
        step, folder = self.state.global_step, Path(self.args.output_dir)
        if not self._ranks.is_first or step == self._saved_step:
            return
        path = checkpoints.path_of(folder, step)
        checkpoints.remove(path)
        reach(FaultPoint.SAVE_BEGUN)
        # Interrupted from here on, the checkpoint has no manifest and does not count.
        super()._save_checkpoint(model, trial)
        self._window.save(path)
        reach(FaultPoint.SAVE_WRITTEN)
        checkpoints.write_manifest(path, self.state.best_global_step if self._config.load_best_at_end else None)
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


def _drop_gradients(weights: Sequence[nn.Parameter], set_to_none: bool = True) -> None:  # noqa: ARG001
    """Drop the gradients of weights, with the signature of `nn.Module.zero_grad`."""
    for weight in weights:
        weight.grad = None
