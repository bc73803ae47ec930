"""The computation of passes: from pairs to packs, and through the model to losses and log-probabilities.

Legend: U examples, A answers of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merlina.schemas.training.config import TrainingConfig
from merlina.training.engine.embedding_noise import NoiseSource
from merlina.training.engine.logprobs import LogprobModel, Logprobs
from merlina.training.engine.packing import Pack, PackedExample, build_pack
from merlina.training.engine.passes import PassPlanner
from merlina.training.loop.batch_item import BatchItem
from merlina.training.models.tokens import TokenPair
from merlina.training.objectives import OBJECTIVES, Objective, ObjectiveInputs, PairLosses


@dataclass(frozen=True)
class Packer:
    """Builds the inputs that a configuration's objective needs, on a device and for a precision."""

    config: TrainingConfig
    device: torch.device
    dtype: torch.dtype

    @property
    def objective(self) -> Objective:
        """The objective of the configuration's method."""
        return OBJECTIVES[self.config.training_mode]

    def pack(self, examples: Sequence[PackedExample]) -> Pack:
        """Return the examples as a pack on the device, with the targets and weights that the objective needs."""
        pack = build_pack(
            examples,
            with_prompt_targets=self.objective.needs_prompt_targets,
            tail_weight=tail_weight(self.config),
        )
        return pack.to(self.device)

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which passes are computed: autocast, unless training computes in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


@dataclass(frozen=True)
class PassRunner:
    """Runs examples through a model in the passes of a planner. All ranks must call its methods together."""

    packer: Packer
    model: LogprobModel
    planner: PassPlanner

    @contextlib.contextmanager
    def unchanged_weights(self) -> Iterator[None]:
        """Let the passes inside this context, in which the weights do not change, share copies of them."""
        with contextlib.ExitStack() as stack:
            # The copies have the dtype of the passes.
            with self.packer.precision():
                stack.enter_context(self.model.unchanged_weights())
            yield

    def with_noise(self, items: Sequence[BatchItem], step: int) -> Sequence[BatchItem]:
        """Return the pairs of an optimizer step with noise on their embeddings, if the run has noise."""
        config = self.packer.config
        if config.neftune_noise_alpha is None:
            return items
        source = NoiseSource(config.neftune_noise_alpha, config.seed)
        return [replace(item, example=source.on(item.example, step, index)) for index, item in enumerate(items)]

    def forward(self, examples: Sequence[PackedExample]) -> Logprobs:
        """Run one pass over `examples` and return their log-probabilities, shape [U, 1 + A]."""
        pack = self.packer.pack(examples)
        with self.packer.precision():
            return self.model(pack)

    def pair_losses(self, items: Sequence[BatchItem], divergence: Tensor | None) -> PairLosses:
        """Run one pass over `items` and return the objective's losses and metrics, shape [U] each."""
        # Losses are computed outside of autocast, in the float32 of the log-probabilities.
        policy = self.forward([item.example for item in items])
        labels = [item.label for item in items if item.label is not None]
        inputs = ObjectiveInputs(
            policy,
            _reference(items, policy),
            divergence,
            torch.tensor(labels, device=policy.sums.device) if labels else None,
        )
        return self.packer.objective.loss(inputs, self.packer.config)

    @torch.no_grad()
    def answer_logprobs(self, examples: Sequence[PackedExample]) -> Tensor:
        """Return the log-probability of each answer, tokens weighted, shape [U, A]; each rank computes its share."""
        # [U, A], zero for examples of other ranks
        found = torch.zeros(len(examples), len(examples[0].answers), device=self.packer.device)
        for indices, is_filler in self.planner.for_rank(examples):
            logprobs = self.forward([examples[index] for index in indices])
            if not is_filler:
                found[indices] = logprobs.answer_logprobs()
        # Rows that other ranks computed are zero here, so the sum is complete.
        self.planner.ranks.sum(found)
        return found

    def divergence(self, items: Sequence[BatchItem]) -> Tensor | None:
        """Return the mean of log pi/ref over unrelated answers, a scalar; None for objectives other than KTO.

        It is computed for all pairs of a step, before the step is divided into passes.
        """
        examples = [item.unrelated for item in items if item.unrelated is not None]
        if not examples:
            return None
        references = [item.unrelated_reference for item in items if item.unrelated_reference is not None]
        return (self.answer_logprobs(examples)[:, 0] - torch.stack(references).to(self.packer.device)).mean()


def tail_weight(config: TrainingConfig) -> float | None:
    """Return the weight of tokens beyond the length of a pair's shorter answer; None if the method weights none."""
    return config.ld_alpha if config.training_mode == "dpo" else None


def packed_example(pair: TokenPair, config: TrainingConfig) -> PackedExample:
    """Return a pair with those of its answers that the objective uses."""
    answers = (pair.chosen,) if config.training_mode == "sft" else tuple(filter(None, (pair.chosen, pair.rejected)))
    return PackedExample(pair.prompt, answers)


def _reference(items: Sequence[BatchItem], policy: Logprobs) -> Logprobs | None:
    references = [item.reference for item in items if item.reference is not None]
    return in_shape_of(policy, torch.stack(references)) if references else None


def in_shape_of(policy: Logprobs, reference: Tensor) -> Logprobs:
    """Return the reference's log-probabilities of answers, [U, A], in the policy's shape, [U, 1 + A].

    The prompt's column is 0, since no objective uses it.
    """
    sums = torch.zeros_like(policy.sums)
    sums[:, 1:] = reference
    return Logprobs(sums, policy.tokens)
