"""Objectives: the losses of the training methods, pure functions of log-probabilities, each with paper and equation.

The loss of a pair does not depend on other pairs, so the division of a step into passes does not change gradients. (The
divergence of KTO is the exception; it is computed for the whole step beforehand.) To add an objective, write its
function here with an entry in OBJECTIVES, and add its name to `TrainingMode` in schemas/datasets/config.py;
ARCHITECTURE.md, "A training method", lists the rest.

Legend: U pairs (or unpaired answers), x a prompt, y_w its chosen and y_l its rejected answer, pi the trained model, ref
the reference (the model before training). log pi(y|x) is a sum over the answer's tokens.

The reward of an answer is what its method raises for chosen and lowers for rejected answers: beta * log pi/ref with a
reference, otherwise beta times the mean or total log-probability. Metrics show rewards, their margin and accuracy.

Worked example of DPO with beta = 0.1: log pi(y_w|x) = -10 and log ref(y_w|x) = -12 give the reward 0.2; log pi(y_l|x) =
-15 and log ref(y_l|x) = -14 give -0.1. The margin is 0.3 and the loss -log sigmoid(0.3) = 0.554; before training both
rewards are 0 and the loss is -log sigmoid(0) = log 2 = 0.693.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from merlina.schemas.datasets.config import TrainingMode
from merlina.schemas.training.config import TrainingConfig
from merlina.training.dpo_losses import LogRatios, dpo_loss, smoothed_log_loss
from merlina.training.engine.logprobs import Logprobs

# Columns of Logprobs.
CHOSEN, REJECTED = 1, 2
# The prefix of the metrics that count the pairs to which another metric applies (see PairLosses).
COUNT = "count:"


@dataclass(frozen=True)
class ObjectiveInputs:
    """The inputs of an objective."""

    policy: Logprobs  # [U, 3], or [U, 2] for methods that do not use rejected answers
    reference: Logprobs | None = None  # the reference's log-probabilities, in the same shape
    divergence: Tensor | None = None  # scalar, mean of log pi/ref over unrelated answers
    labels: Tensor | None = None  # [U] bool, of unpaired answers: then policy and reference are [U, 2]


@dataclass(frozen=True)
class PairLosses:
    """The loss of each pair, shape [U], with its graph, and metrics by name, shape [U], without.

    A metric that applies to some pairs only is 0 for the others, and is accompanied by another one, COUNT and its name,
    which is 1 for the pairs that it applies to and 0 for the others.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss function and the inputs that it needs."""

    loss: Callable[[ObjectiveInputs, TrainingConfig], PairLosses]
    needs_prompt_targets: bool = False
    needs_reference: bool = False
    needs_divergence: bool = False


def orpo(inputs: ObjectiveInputs, config: TrainingConfig) -> PairLosses:
    """Odds ratio preference optimization (arXiv 2403.07691, equations 4, 6 and 7).

    loss = NLL(x, y_w) - beta * log sigmoid(log odds(y_w) - log odds(y_l)), where odds(y) = p / (1 - p) and
    p = exp(mean log-probability of y's tokens).
    """
    policy = inputs.policy
    chosen, rejected = policy.mean_logprob(CHOSEN), policy.mean_logprob(REJECTED)
    # As in TRL, the NLL covers prompt and chosen answer, the odds the answers alone.
    nll = -policy.mean_logprob_with_prompt(CHOSEN)
    # Mean log-probabilities make p the geometric mean of token probabilities, independent of length.
    log_ratio = _log_odds(chosen) - _log_odds(rejected)
    log_sigmoid = F.logsigmoid(log_ratio)
    # The names of the metrics are TRL's.
    metrics = {"nll_loss": nll, "log_odds": log_ratio, "log_odds_ratio": log_sigmoid}
    return _losses(nll - config.beta * log_sigmoid, config.beta * chosen, config.beta * rejected, policy, metrics)


def dpo(inputs: ObjectiveInputs, config: TrainingConfig) -> PairLosses:
    """Direct preference optimization (arXiv 2305.18290, equation 7).

    loss = -log sigmoid(beta * (log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)))

    `loss_type` replaces this function of the two log-ratios by others (see `dpo_losses`). With `length_normalize`, each
    ratio is a mean over its answer's tokens; with `ld_alpha`, the tokens of the longer answer beyond the length of the
    shorter one are weighted (LD-DPO, arXiv 2409.06411).
    """
    chosen, rejected = _log_ratio(inputs, CHOSEN), _log_ratio(inputs, REJECTED)
    if config.length_normalize:
        tokens = inputs.policy.tokens
        chosen, rejected = chosen / tokens[:, CHOSEN], rejected / tokens[:, REJECTED]
    losses = _losses(
        dpo_loss(LogRatios(chosen, rejected), config), config.beta * chosen, config.beta * rejected, inputs.policy
    )
    return _with_nll(losses, inputs.policy, config)


def ipo(inputs: ObjectiveInputs, config: TrainingConfig) -> PairLosses:
    """Identity preference optimization (arXiv 2310.12036, equation 17), tau being beta.

    loss = (h - 1 / (2 beta))^2 with h = log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x). Each ratio is a mean over
    its answer's tokens, as in TRL: otherwise long answers would move h far beyond the target 1 / (2 beta).
    """
    tokens = inputs.policy.tokens
    chosen = _log_ratio(inputs, CHOSEN) / tokens[:, CHOSEN]
    rejected = _log_ratio(inputs, REJECTED) / tokens[:, REJECTED]
    loss = (chosen - rejected - 1 / (2 * config.beta)) ** 2
    losses = _losses(loss, config.beta * chosen, config.beta * rejected, inputs.policy)
    return _with_nll(losses, inputs.policy, config)


def simpo(inputs: ObjectiveInputs, config: TrainingConfig) -> PairLosses:
    """Simple preference optimization (arXiv 2405.14734, equation 6).

    loss = -log sigmoid(beta * mean log pi(y_w|x) - beta * mean log pi(y_l|x) - gamma), smoothed by `label_smoothing`
    """
    chosen, rejected = (
        config.beta * inputs.policy.mean_logprob(CHOSEN),
        config.beta * inputs.policy.mean_logprob(REJECTED),
    )
    loss = smoothed_log_loss(chosen - rejected - config.simpo_gamma, config.label_smoothing)
    return _with_nll(_losses(loss, chosen, rejected, inputs.policy), inputs.policy, config)


def cpo(inputs: ObjectiveInputs, config: TrainingConfig) -> PairLosses:
    """Contrastive preference optimization (arXiv 2401.08417, equations 3 to 5).

    loss = -log sigmoid(beta * log pi(y_w|x) - beta * log pi(y_l|x)) - mean log pi(y_w|x), the first term smoothed by
    `label_smoothing`
    """
    policy = inputs.policy
    chosen, rejected = config.beta * policy.total_logprob(CHOSEN), config.beta * policy.total_logprob(REJECTED)
    nll = -policy.mean_logprob(CHOSEN)
    loss = nll + smoothed_log_loss(chosen - rejected, config.label_smoothing)
    return _losses(loss, chosen, rejected, policy, {"nll_loss": nll})


def kto(inputs: ObjectiveInputs, config: TrainingConfig) -> PairLosses:
    """Kahneman-Tversky optimization (arXiv 2402.01306, equations 7 and 8).

    The loss of a desirable answer is w_d * (1 - sigmoid(beta * (r(y) - z))), that of an undesirable one
    w_u * (1 - sigmoid(beta * (z - r(y)))), with r(y) = log pi(y|x)/ref(y|x). The loss of a pair is the mean of both. z
    estimates the divergence of pi from ref as the mean of r over unrelated answers (the paper: mismatched), at least 0;
    it has no gradient.
    """
    assert inputs.divergence is not None
    # A negative estimate of a divergence is noise.
    divergence = inputs.divergence.clamp(min=0)
    if inputs.labels is not None:
        return _kto_of_unpaired(inputs, divergence, inputs.labels, config)
    chosen, rejected = _log_ratio(inputs, CHOSEN), _log_ratio(inputs, REJECTED)
    loss = (_loss_of_desirable(chosen, divergence, config) + _loss_of_undesirable(rejected, divergence, config)) / 2
    metrics = {"divergence": divergence.expand_as(chosen)}
    return _losses(loss, config.beta * chosen, config.beta * rejected, inputs.policy, metrics)


def sft(inputs: ObjectiveInputs, config: TrainingConfig) -> PairLosses:  # noqa: ARG001
    """Supervised fine-tuning: the mean negative log-probability of the chosen answer's tokens."""
    chosen = inputs.policy.mean_logprob(CHOSEN)
    return PairLosses(loss=-chosen, metrics={"nll_loss": -chosen.detach(), "logps_chosen": chosen.detach()})


OBJECTIVES: dict[TrainingMode, Objective] = {
    "orpo": Objective(orpo, needs_prompt_targets=True),
    "dpo": Objective(dpo, needs_reference=True),
    "simpo": Objective(simpo),
    "cpo": Objective(cpo),
    "ipo": Objective(ipo, needs_reference=True),
    "kto": Objective(kto, needs_reference=True, needs_divergence=True),
    "sft": Objective(sft),
}


def _kto_of_unpaired(inputs: ObjectiveInputs, divergence: Tensor, labels: Tensor, config: TrainingConfig) -> PairLosses:
    ratio = _log_ratio(inputs, 1)
    desirable, undesirable = (loss(ratio, divergence, config) for loss in (_loss_of_desirable, _loss_of_undesirable))
    reward, mean_logprob = (config.beta * ratio).detach(), inputs.policy.mean_logprob(1).detach()
    metrics = {"divergence": divergence.expand_as(ratio).detach()}
    for answer, applies in (("chosen", labels), ("rejected", ~labels)):
        for name, values in ((f"rewards_{answer}", reward), (f"logps_{answer}", mean_logprob)):
            metrics[name] = values.where(applies, 0)
            metrics[f"{COUNT}{name}"] = applies.to(values.dtype)
    return PairLosses(loss=desirable.where(labels, undesirable), metrics=metrics)


def _loss_of_desirable(ratio: Tensor, divergence: Tensor, config: TrainingConfig) -> Tensor:
    return config.desirable_weight * (1 - torch.sigmoid(config.beta * (ratio - divergence)))


def _loss_of_undesirable(ratio: Tensor, divergence: Tensor, config: TrainingConfig) -> Tensor:
    return config.undesirable_weight * (1 - torch.sigmoid(config.beta * (divergence - ratio)))


def _log_odds(logprob: Tensor) -> Tensor:
    """Return log(p / (1 - p)) for log p. expm1 keeps the small difference 1 - p for p close to 1."""
    # p = 1 has infinite odds; clamping to the largest float below keeps the gradient finite.
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return logprob - torch.log(-torch.expm1(logprob))


def _log_ratio(inputs: ObjectiveInputs, answer: int) -> Tensor:
    """Return log(pi(y|x) / ref(y|x)), shape [U]; with `ld_alpha`, of weighted tokens."""
    assert inputs.reference is not None
    return inputs.policy.weighted_logprob(answer) - inputs.reference.weighted_logprob(answer)


def _with_nll(losses: PairLosses, policy: Logprobs, config: TrainingConfig) -> PairLosses:
    """Add `nll_weight` times the chosen answer's mean negative log-probability (RPO, arXiv 2404.19733, equation 1)."""
    if not config.nll_weight:
        return losses
    nll = -policy.mean_logprob(CHOSEN)
    return PairLosses(losses.loss + config.nll_weight * nll, {**losses.metrics, "nll_loss": nll.detach()})


def _accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return 1 for pairs in which the chosen answer has the higher reward, 0 for a lower one, 0.5 for a tie; shape [U].

    Before training, a method with a reference ties every pair, and 0.5 is the accuracy of guessing. (TRL counts 0.)
    """
    return torch.where(chosen == rejected, 0.5, (chosen > rejected).float())


def _losses(
    loss: Tensor, chosen: Tensor, rejected: Tensor, policy: Logprobs, metrics: dict[str, Tensor] | None = None
) -> PairLosses:
    """Add the metrics that all preference methods share; `chosen` and `rejected` are the rewards, shape [U]."""
    metrics = {
        **(metrics or {}),
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "reward_accuracy": _accuracy(chosen, rejected),
        "reward_margin": chosen - rejected,
        "logps_chosen": policy.mean_logprob(CHOSEN),
        "logps_rejected": policy.mean_logprob(REJECTED),
    }
    return PairLosses(loss=loss, metrics={name: values.detach() for name, values in metrics.items()})
