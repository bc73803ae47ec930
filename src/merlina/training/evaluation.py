"""Figures of a model as its users load it, by the model's own forward pass: no packs, no replaced layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merlina.schemas.training import TrainingConfig
from merlina.training.distributed.ranks import ALONE
from merlina.training.engine.logprobs import Logprobs, PaddedModel
from merlina.training.engine.packing import PackedExample, lay_out
from merlina.training.loop.metrics import Means
from merlina.training.loop.reference import kept_reference, unrelated_units
from merlina.training.models.tokens import TokenPair
from merlina.training.objectives import OBJECTIVES, Evidence


class PlainModel:
    """Log-probabilities by a causal language model's own forward pass, one pair at a time."""

    def __init__(self, model: Any) -> None:
        # No mask lets anything see what fills padded rows, but it must have a row in the embedding: 0 always has.
        self._run = PaddedModel(model.eval(), pad_id=0)
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def logprobs(self, unit: PackedExample, *, with_prompt: bool = False) -> Logprobs:
        """-> sums and counts, [1, 1 + A]"""
        found = self._run(lay_out([unit], with_prompt_targets=with_prompt).to(self._device))
        return Logprobs(found.sums.float().cpu(), found.tokens.float().cpu())


def per_token(model: PlainModel, pairs: Sequence[TokenPair]) -> Tensor:
    """Mean log-probability per token of each answer, one after the other."""
    units = [PackedExample(pair.prompt, tuple(filter(None, (pair.chosen, pair.rejected)))) for pair in pairs]
    found = [model.logprobs(unit) for unit in units]
    return torch.cat([(each.sums[0, 1:] / each.tokens[0, 1:]).double() for each in found])


def held_out_figures(
    model: PlainModel, pairs: Sequence[TokenPair], config: TrainingConfig, reference_folder: Path
) -> dict[str, float]:
    """The figures of an evaluation. None where the method needs a reference and `reference_folder` does not have it."""
    objective = OBJECTIVES[config.training_mode]
    units = [
        PackedExample(pair.prompt, (pair.chosen, pair.rejected) if config.needs_rejected else (pair.chosen,))
        for pair in pairs
    ]
    reference = kept_reference("held-out", units, reference_folder) if objective.reference else None
    unrelated = unrelated_units(units, config.max_length) if objective.divergence else []
    of_unrelated = kept_reference("held-out-unrelated", unrelated, reference_folder) if unrelated else None
    if (objective.reference and reference is None) or (unrelated and of_unrelated is None):
        return {}
    means = Means()
    size = config.pairs_per_step
    for begin in range(0, len(units), size):
        batch = slice(begin, begin + size)
        found = [model.logprobs(unit, with_prompt=objective.prompt_targets) for unit in units[batch]]
        policy = Logprobs(torch.cat([each.sums for each in found]), torch.cat([each.tokens for each in found]))
        divergence = None
        if of_unrelated is not None:
            totals = torch.cat([model.logprobs(unit).total(1) for unit in unrelated[batch]])
            divergence = (totals - of_unrelated[batch, 0]).mean()
        losses = objective.loss(Evidence(policy, _as_logprobs(reference, batch, policy), divergence), config)
        means.add({"loss": losses.loss, **losses.figures})
    means.gather(ALONE, len(units))
    return {f"eval_{name}": value for name, value in means.take().items()}


def _as_logprobs(reference: Tensor | None, batch: slice, policy: Logprobs) -> Logprobs | None:
    if reference is None:
        return None
    sums = torch.zeros_like(policy.sums)
    sums[:, 1:] = reference[batch]
    return Logprobs(sums, policy.tokens)
