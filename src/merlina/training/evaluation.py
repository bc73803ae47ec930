"""Evaluation of a model as its users load it, by its own forward pass: no packs, no fused layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merlina.schemas.training.config import TrainingConfig
from merlina.training.distributed.ranks import SINGLE_PROCESS
from merlina.training.engine.logprobs import Logprobs, PaddedModel
from merlina.training.engine.packing import PackedExample, build_pack
from merlina.training.evaluation_sets import EvaluationSet
from merlina.training.loop.metrics import RunningMeans, evaluation_metrics
from merlina.training.loop.pass_runner import in_shape_of, packed_example, tail_weight
from merlina.training.loop.reference import load_reference_logprobs
from merlina.training.loop.unrelated_examples import unrelated_examples
from merlina.training.models.tokens import TokenPair
from merlina.training.objectives import OBJECTIVES, ObjectiveInputs


class PlainModel:
    """The log-probabilities of a causal language model by its own forward pass, one pair at a time."""

    def __init__(self, model: Any) -> None:
        # Padding is masked, so any token id with an embedding is suitable; 0 always has one.
        self._padded = PaddedModel(model.eval(), pad_id=0)
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def logprobs(
        self, example: PackedExample, *, with_prompt: bool = False, tail_weight: float | None = None
    ) -> Logprobs:
        """Return the sums and numbers of tokens on the CPU, shape [1, 1 + A] for A answers.

        `with_prompt` and `tail_weight` are as in `build_pack`; the pack serves as the layout of the result alone.
        """
        pack = build_pack([example], with_prompt_targets=with_prompt, tail_weight=tail_weight)
        found = self._padded(pack.to(self._device))
        weighted = None if found.weighted_sums is None else found.weighted_sums.float().cpu()
        return Logprobs(found.sums.float().cpu(), found.tokens.float().cpu(), weighted)


def mean_answer_logprobs(model: PlainModel, pairs: Sequence[TokenPair]) -> Tensor:
    """Return the mean log-probability per token of every answer of `pairs`, in order, shape [answers], float64."""
    examples = [PackedExample(pair.prompt, tuple(filter(None, (pair.chosen, pair.rejected)))) for pair in pairs]
    found = [model.logprobs(example) for example in examples]
    return torch.cat([(each.sums[0, 1:] / each.tokens[0, 1:]).double() for each in found])


def metrics_of(
    model: PlainModel, sets: Sequence[EvaluationSet], config: TrainingConfig, reference_folder: Path
) -> dict[str, float]:
    """Return the metrics of an evaluation, `eval_…`: empty if `reference_folder` lacks a reference that is needed."""
    means_by_set = {}
    for evaluation_set in sets:
        means = _means_over(model, evaluation_set, config, reference_folder)
        if means is None:
            return {}
        means_by_set[evaluation_set.name] = means
    return evaluation_metrics(means_by_set)


def _means_over(
    model: PlainModel, evaluation_set: EvaluationSet, config: TrainingConfig, reference_folder: Path
) -> RunningMeans | None:
    pairs, name = evaluation_set.pairs, evaluation_set.reference_name
    objective = OBJECTIVES[config.training_mode]
    examples = [packed_example(pair, config) for pair in pairs]
    reference = load_reference_logprobs(name, examples, reference_folder) if objective.needs_reference else None
    unrelated = unrelated_examples(examples, config.max_length) if objective.needs_divergence else []
    unrelated_references = (
        load_reference_logprobs(evaluation_set.unrelated_name, unrelated, reference_folder) if unrelated else None
    )
    # The model is trained already, so the reference cannot be computed from it.
    if (objective.needs_reference and reference is None) or (unrelated and unrelated_references is None):
        return None
    means = RunningMeans()
    size = config.pairs_per_step
    for begin in range(0, len(examples), size):
        batch = slice(begin, begin + size)
        found = [
            model.logprobs(example, with_prompt=objective.needs_prompt_targets, tail_weight=tail_weight(config))
            for example in examples[batch]
        ]
        weighted = [each.weighted_sums for each in found if each.weighted_sums is not None]
        policy = Logprobs(
            torch.cat([each.sums for each in found]),
            torch.cat([each.tokens for each in found]),
            torch.cat(weighted) if weighted else None,
        )
        divergence = None
        if unrelated_references is not None:
            totals = torch.cat([model.logprobs(example).total_logprob(1) for example in unrelated[batch]])
            divergence = (totals - unrelated_references[batch, 0]).mean()
        labels = [pair.label for pair in pairs[batch] if pair.label is not None]
        of_reference = None if reference is None else in_shape_of(policy, reference[batch])
        inputs = ObjectiveInputs(policy, of_reference, divergence, torch.tensor(labels) if labels else None)
        losses = objective.loss(inputs, config)
        means.add({"loss": losses.loss, **losses.metrics})
    # The number of pairs turns sums into means; there are no other ranks.
    means.gather(SINGLE_PROCESS, len(examples))
    return means
