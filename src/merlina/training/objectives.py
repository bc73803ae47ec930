"""What is minimised: pure functions of log-probabilities, each with its paper and equation.

Each pair's loss stands for itself, so how pairs are cut into batches changes no gradient. To add an objective: its
function here with an entry in OBJECTIVES, and its name in `merlina.schemas.training.TrainingMode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from merlina.schemas.training import TrainingMode
from merlina.training.logprobs import PairLogprobs


@dataclass(frozen=True)
class PairLosses:
    """`loss[B]`, with its graph; `figures`, name -> [B], without."""

    loss: Tensor
    figures: dict[str, Tensor]


def orpo(logprobs: PairLogprobs, beta: float) -> PairLosses:
    """Odds ratio preference optimization (arXiv 2403.07691, equations 4, 6 and 7).

    loss = NLL(prompt, chosen) - beta * log sigmoid(log odds(chosen) - log odds(rejected)), where
    odds(y) = p / (1 - p) and p = exp(mean log-probability of y's tokens).
    """
    log_odds = _log_odds(logprobs.chosen) - _log_odds(logprobs.rejected)
    log_odds_ratio = F.logsigmoid(log_odds)
    figures = {
        "nll_loss": logprobs.chosen_nll,
        "log_odds": log_odds,
        "log_odds_ratio": log_odds_ratio,
        **_reward_figures(logprobs, beta),
    }
    return PairLosses(
        loss=logprobs.chosen_nll - beta * log_odds_ratio,
        figures={name: figure.detach() for name, figure in figures.items()},
    )


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, without losing the small difference to 1."""
    # p = 1 would be infinite odds; the next float32 below keeps its gradient finite.
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return logprob - torch.log(-torch.expm1(logprob))


def _reward_figures(logprobs: PairLogprobs, beta: float) -> dict[str, Tensor]:
    chosen, rejected = beta * logprobs.chosen, beta * logprobs.rejected
    return {
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "reward_accuracy": (chosen > rejected).float(),
        "reward_margin": chosen - rejected,
        "logps_chosen": logprobs.chosen,
        "logps_rejected": logprobs.rejected,
    }


Objective = Callable[[PairLogprobs, float], PairLosses]

OBJECTIVES: dict[TrainingMode, Objective] = {"orpo": orpo}
