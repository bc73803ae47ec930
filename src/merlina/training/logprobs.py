"""Log-probabilities of a batch's targets, from hidden states, with logits only where a target is.

Legend: B pairs, T positions, N targets, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from merlina.training.batches import NO_TARGET, PairBatch, pairs_in

_CLOSE_ENOUGH = 1e-2


@dataclass(frozen=True)
class PairLogprobs:
    """What every objective is a function of; all float32, shape [B]."""

    chosen: Tensor  # mean log-probability of the chosen answer's tokens
    rejected: Tensor  # the same of the rejected answer's
    chosen_nll: Tensor  # mean negative log-probability of prompt and chosen answer


def pair_logprobs(model: nn.Module, batch: PairBatch, *, plain: bool = False) -> PairLogprobs:
    """Runs the model on a batch. `plain` builds all logits [2B, T, V] the model's own way."""
    has_target = batch["targets"] != NO_TARGET  # [2B, T]
    targets = batch["targets"][has_target]  # [N]
    logits = _all_logits(model, batch)[has_target] if plain else _target_logits(model, batch, has_target)
    token_logprobs = torch.zeros(has_target.shape, dtype=torch.float32, device=logits.device)
    token_logprobs[has_target] = -F.cross_entropy(logits.float(), targets, reduction="none")
    pairs = pairs_in(batch)
    answers = _mean(token_logprobs, batch["is_answer"])
    return PairLogprobs(
        chosen=answers[:pairs],
        rejected=answers[pairs:],
        chosen_nll=-_mean(token_logprobs[:pairs], has_target[:pairs]),
    )


@torch.no_grad()
def fast_path_agrees(model: nn.Module, batch: PairBatch) -> bool:
    """Whether hidden states and output head give the log-probabilities that the model's own logits give."""
    was_training = model.training
    model.eval()
    try:
        fast, own = pair_logprobs(model, batch), pair_logprobs(model, batch, plain=True)
    except (AttributeError, TypeError, NotImplementedError):
        return False
    finally:
        model.train(was_training)
    return bool(torch.allclose(fast.chosen_nll, own.chosen_nll, rtol=_CLOSE_ENOUGH, atol=_CLOSE_ENOUGH))


def _all_logits(model: nn.Module, batch: PairBatch) -> Tensor:
    """-> [2B, T, V]"""
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits: Tensor = output.logits
    return logits


def _target_logits(model: nn.Module, batch: PairBatch, has_target: Tensor) -> Tensor:
    """-> [N, V]"""
    wrapped: Any = model
    causal_lm = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    output = causal_lm.get_decoder()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    hidden = output.last_hidden_state[has_target]  # [N, H]
    head: Any = causal_lm.get_output_embeddings()
    if head.weight.is_floating_point():
        hidden = hidden.to(head.weight.dtype)
    return _adjusted(head(hidden), causal_lm.config)


def _adjusted(logits: Tensor, config: Any) -> Tensor:
    """What some models do to their logits: Granite divides, Cohere multiplies, Gemma 2 caps them."""
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """values[R, T], mask[R, T] -> [R], the mean where the mask is set."""
    return (values * mask).sum(-1) / mask.sum(-1)
