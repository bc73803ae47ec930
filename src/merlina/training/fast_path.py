"""Whether a model can be run on packs, found out by trying: same log-probabilities, or the model's own way."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from merlina.schemas.training import AttentionImplementation
from merlina.training.fused_layers import fuse_layers, unfuse_layers
from merlina.training.logprobs import LogprobModel, PackedModel, PaddedModel, unwrapped
from merlina.training.packing import Pack

# Other layers, such as linear attention, carry one sequence's state into the next.
_ATTENTION_KINDS = {"full_attention", "sliding_attention"}
# Of a sum of log-probabilities, by the square root of its tokens: what rounding does to each is random, and a token
# that 16 bits make a tenth too likely is nothing strange. A wrong mask or position is off by far more.
_CLOSE_ENOUGH, _CLOSE_ENOUGH_IN_16_BITS = 1e-2, 0.3


def fast_path(
    model: nn.Module,
    trial: Pack,
    pad_id: int,
    implementation: AttentionImplementation,
    precision: AbstractContextManager[Any],
) -> tuple[LogprobModel, str | None]:
    """The model as a LogprobModel, with the reason where it has to be run its own, slower way.

    `trial` is what both ways are held against each other on; `precision` is the context that training computes in.
    """
    causal_lm, own = unwrapped(model), PaddedModel(model, pad_id)
    kinds = set(getattr(causal_lm.config, "layer_types", None) or ())
    if not kinds <= _ATTENTION_KINDS:
        return own, f"has layers of the kind {', '.join(sorted(kinds - _ATTENTION_KINDS))}"
    if not causal_lm._can_set_attn_implementation():
        return own, "has an attention of its own"
    attention = causal_lm.config._attn_implementation
    device = trial.input_ids.device.type
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision:
            close_enough = _CLOSE_ENOUGH_IN_16_BITS if torch.is_autocast_enabled(device) else _CLOSE_ENOUGH
            if _in_8_bits(causal_lm):
                # bitsandbytes' own product rounds activations to 8 bits as well; both ways take the better one.
                fuse_layers(causal_lm)
            expected = own(trial)
            fuse_layers(causal_lm)
            packed = PackedModel(model, implementation)
            found = packed(trial)
        _train_on(model, trial, packed, precision)
        apart = ((expected.sums - found.sums).abs() / expected.tokens.clamp(min=1).sqrt()).max().item()
        if apart <= close_enough:
            return packed, None
        reason = f"gives other log-probabilities that way (apart by {apart:.2g})"
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        # Kernels refuse a GPU or a shape with a plain RuntimeError.
        reason = f"can't be run that way ({type(error).__name__})"
    finally:
        model.train(was_training)
    unfuse_layers(causal_lm)
    causal_lm.set_attn_implementation(attention)
    return own, reason


def _train_on(model: nn.Module, trial: Pack, packed: PackedModel, precision: AbstractContextManager[Any]) -> None:
    """Raises what shows in training alone: attention weights that are dropped out, kernels that can't go backward."""
    devices = [trial.input_ids.device] if trial.input_ids.device.type == "cuda" else []
    model.train()
    try:
        with torch.random.fork_rng(devices):
            with precision:
                logprobs = packed(trial)
            logprobs.sums.sum().backward()
    finally:
        model.zero_grad()


def _in_8_bits(model: nn.Module) -> bool:
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())
