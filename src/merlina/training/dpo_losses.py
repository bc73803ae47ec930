"""Losses of direct preference optimization: what `loss_type` selects for `training_mode` dpo.

Each is a function of the log-ratios of a pair, w = log pi(y_w|x)/ref(y_w|x) of the chosen answer and l of the rejected
one (`objectives` has the legend), and of beta; most are functions of the margin m = w - l alone. eps is
`label_smoothing`, and sigma the logistic function. Names are those of TRL, which has the same losses.

Worked example with beta = 0.1, w = 2, l = -1, so that beta * m = 0.3: sigmoid gives -log sigma(0.3) = 0.554, and with
eps = 0.1, 0.9 * 0.554 + 0.1 * 0.854 = 0.584; hinge gives max(0, 1 - 0.3) = 0.7; sppo_hard gives
(2 - 5)^2 + (-1 + 5)^2 = 25; apo_zero gives 1 - sigma(0.2) + sigma(-0.1) = 0.925.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.method import LossType

# The temperature of DiscoPOP in its paper, which tunes no other.
_DISCOPOP_TAU = 0.05


@dataclass(frozen=True)
class LogRatios:
    """The log-ratios of pairs, log pi(y|x)/ref(y|x), shape [U] each."""

    chosen: Tensor
    rejected: Tensor


def dpo_loss(ratios: LogRatios, config: TrainingConfig) -> Tensor:
    """Return the weighted sum of the losses of `loss_type` for each pair, shape [U].

    With `dpop_weight`, lambda, the margin of a pair is that of DPO-positive (arXiv 2402.13228, equation 3):
    m = w - l - lambda * max(0, -w), which is smaller if the chosen answer is less likely than under the reference.
    """
    margin = ratios.chosen - ratios.rejected
    if config.dpop_weight:
        margin = margin - config.dpop_weight * F.relu(-ratios.chosen)
    weights = config.loss_weights or [1.0] * len(config.loss_type)
    losses = [
        weight
        * (
            _OF_MARGIN[name](config.beta * margin, config.label_smoothing)
            if name in _OF_MARGIN
            else _OF_ANSWERS[name](ratios, config.beta)
        )
        for name, weight in zip(config.loss_type, weights, strict=True)
    ]
    return torch.stack(losses).sum(0) if len(losses) > 1 else losses[0]


def smoothed_log_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Return the logistic loss of pairs whose answers are the wrong way round with probability `smoothing`, shape [U].

    -(1 - eps) * log sigma(logits) - eps * log sigma(-logits), known as conservative DPO (cDPO): its minimum is where
    sigma(logits) = 1 - eps, so that the margin of a doubtful pair does not grow without bound.
    """
    if not smoothing:
        return -F.logsigmoid(logits)
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def _robust(logits: Tensor, smoothing: float) -> Tensor:
    """Robust DPO (arXiv 2403.00409), an unbiased estimate of the DPO loss of labels without noise.

    (-(1 - eps) * log sigma(beta * m) + eps * log sigma(-beta * m)) / (1 - 2 * eps). It can be negative.
    """
    return (-(1 - smoothing) * F.logsigmoid(logits) + smoothing * F.logsigmoid(-logits)) / (1 - 2 * smoothing)


def _hinge(logits: Tensor, _smoothing: float) -> Tensor:
    """Hinge loss (SLiC, arXiv 2305.10425; relative to a reference, RSO, arXiv 2309.06657): max(0, 1 - beta * m)."""
    return F.relu(1 - logits)


def _exo_pair(logits: Tensor, smoothing: float) -> Tensor:
    """Exact preference optimization of a pair (arXiv 2402.00856, equation 16).

    The reverse divergence of the policy's preference from the smoothed labels: with p = sigma(beta * m),
    p * log(p / (1 - eps)) + (1 - p) * log((1 - p) / eps).
    """
    log_chosen, log_rejected = F.logsigmoid(logits), F.logsigmoid(-logits)
    of_chosen = torch.sigmoid(logits) * (log_chosen - math.log1p(-smoothing))
    return of_chosen + torch.sigmoid(-logits) * (log_rejected - math.log(smoothing))


def _discopop(logits: Tensor, _smoothing: float) -> Tensor:
    """DiscoPOP (arXiv 2406.08414, equation 5), a loss found by search: a mixture of logistic and exponential loss.

    (1 - g) * -log sigma(beta * m) + g * exp(-beta * m), where g = sigma(beta * m / 0.05).
    """
    gate = logits / _DISCOPOP_TAU
    # As one exponential: exp(-logits) alone overflows where the gate is closed.
    return -F.logsigmoid(logits) * torch.sigmoid(-gate) + torch.exp(F.logsigmoid(gate) - logits)


def _apo_zero(ratios: LogRatios, beta: float) -> Tensor:
    """Anchored preference optimization, zero (arXiv 2408.06266, equation 7): 1 - sigma(beta * w) + sigma(beta * l).

    Chosen answers become more likely and rejected ones less. For chosen answers that are better than the model's own.
    """
    return torch.sigmoid(-beta * ratios.chosen) + torch.sigmoid(beta * ratios.rejected)


def _apo_down(ratios: LogRatios, beta: float) -> Tensor:
    """Anchored preference optimization, down (arXiv 2408.06266, equation 8): sigma(beta * w) + 1 - sigma(beta * m).

    Both answers become less likely, rejected ones more so. For chosen answers that are worse than the model's own.
    """
    return torch.sigmoid(beta * ratios.chosen) + torch.sigmoid(-beta * (ratios.chosen - ratios.rejected))


def _nca_pair(ratios: LogRatios, beta: float) -> Tensor:
    """Noise contrastive alignment of a pair (arXiv 2402.05369).

    -log sigma(beta * w) - 1/2 * log sigma(-beta * w) - 1/2 * log sigma(-beta * l). It judges each answer by itself,
    which keeps the likelihood of chosen answers from falling.
    """
    chosen, rejected = beta * ratios.chosen, beta * ratios.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _bco_pair(ratios: LogRatios, beta: float) -> Tensor:
    """Binary classifier optimization of a pair (arXiv 2404.04656): -log sigma(beta * w) - log sigma(-beta * l).

    The paper also subtracts from both rewards a shift, the mean reward of all pairs; here, as in TRL, it is 0.
    """
    return -F.logsigmoid(beta * ratios.chosen) - F.logsigmoid(-beta * ratios.rejected)


def _sppo_hard(ratios: LogRatios, beta: float) -> Tensor:
    """Self-play preference optimization with hard labels (arXiv 2405.00675, equation 4.7 with P of 1 and 0).

    (w - 1 / (2 beta))^2 + (l + 1 / (2 beta))^2
    """
    target = 0.5 / beta
    return (ratios.chosen - target) ** 2 + (ratios.rejected + target) ** 2


_OF_MARGIN: dict[LossType, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": smoothed_log_loss,
    "robust": _robust,
    "hinge": _hinge,
    "exo_pair": _exo_pair,
    "discopop": _discopop,
}
_OF_ANSWERS: dict[LossType, Callable[[LogRatios, float], Tensor]] = {
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
}
