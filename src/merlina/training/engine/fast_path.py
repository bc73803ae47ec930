"""Whether a model can be run on packs, found out by trying: same log-probabilities, or the model's own way.

Two trials, since one of short texts cannot show everything and one of long texts is not cheap with all its logits:

- short texts, several in one pack, against the model's own forward with its output head, and a backward pass
- where the run has longer ones, the longest of them behind short ones, against the model's own decoder on each text by
  itself, without gradients. `telling` says how much of it is needed: until every window, chunk and limit of positions
  that the run itself will cross has been crossed. That costs a part of what the run's first step does.

Log-probabilities are compared token by token, and the worst `_BLOCK` consecutive tokens decide: what is wrong only
beyond a window must not be averaged away by what is right before it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from merlina.schemas.training import AttentionImplementation
from merlina.training.engine.attention import packing_obstacle
from merlina.training.engine.layers import fuse_layers, unfuse_layers
from merlina.training.engine.logprobs import (
    LogprobModel,
    PackedModel,
    PaddedModel,
    UnbatchedModel,
    decoder_of,
    padded_target_indices,
    unwrap,
)
from merlina.training.engine.output_head import OutputHead
from merlina.training.engine.packing import Pack, PackedExample, PackingError
from merlina.training.engine.rotary import LengthGroupedModel, RotaryLengths

# Of log-probabilities, root mean square over a block of tokens. What rounding does to each is random, and a token that
# 16 bits make a tenth too likely is nothing strange. A wrong mask or position is off by far more.
_CLOSE_ENOUGH, _CLOSE_ENOUGH_IN_16_BITS = 1e-2, 0.3
_BLOCK = 32
# Tokens of a text beyond the last limit that it crosses, and of one that crosses none.
_BEYOND, _AT_LEAST = 128, 512
_LIMITS = re.compile("window|chunk|block|local|length|position|context|topk|floor")

_log = logging.getLogger(__name__)


def fast_path(
    model: nn.Module,
    trial: Pack,
    pad_id: int,
    implementation: AttentionImplementation,
    precision: AbstractContextManager[Any],
    long_trial: Pack | None = None,
) -> tuple[LogprobModel, str | None]:
    """The model as a LogprobModel, with the reason where it has to be run its own, slower way.

    Both ways are held against each other on `trial` and `long_trial`; `precision` is the context that training computes
    in. The reason is the end of a sentence that begins with "This model".
    """
    causal_lm = unwrap(model)
    lengths = RotaryLengths(causal_lm)
    own = _by_length(PaddedModel(model, pad_id), lengths)
    reason = packing_obstacle(causal_lm)
    if reason is not None:
        return _own_way(model, trial, pad_id, precision, lengths), reason
    attention = causal_lm.config._attn_implementation
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision:
            if _in_8_bits(causal_lm):
                # bitsandbytes' own product rounds activations to 8 bits as well; both ways take the better one.
                fuse_layers(causal_lm)
            expected = own.target_logprobs(trial)
            expected_long = None if long_trial is None else _text_by_text(causal_lm, long_trial, lengths)
            fuse_layers(causal_lm)
            packed = _by_length(PackedModel(model, implementation), lengths)
            apart = _apart(packed.target_logprobs(trial), expected)
            if long_trial is not None and expected_long is not None:
                apart = max(apart, _apart(packed.target_logprobs(long_trial), expected_long))
            tolerance = _tolerance(trial)
        _train_on(model, trial, packed, precision)
        if apart <= tolerance:
            return packed, None
        reason = f"gives other log-probabilities on packed texts than on each text by itself (by {apart:.2g} a token)"
    except torch.OutOfMemoryError:
        raise
    except PackingError as error:
        reason = str(error)
    except Exception:
        # Layers of all kinds fail in all ways where they are given what they were not written for, and kernels refuse a
        # GPU or a shape with a plain RuntimeError.
        _log.debug("The trial of packed texts failed", exc_info=True)
        reason = "has layers that fail on packed texts"
    finally:
        model.train(was_training)
    unfuse_layers(causal_lm)
    causal_lm.set_attn_implementation(attention)
    return _own_way(model, trial, pad_id, precision, lengths), reason


def shorten_for_trial(config: Any, example: PackedExample) -> PackedExample:
    """As much of a run's longest texts as shows everything that the model does otherwise with long texts.

    Any whole number of the model's configuration under a name like `sliding_window`, `attention_chunk_size` or
    `original_max_position_embeddings` may be a limit. With a window of 4,096, texts of 6,000 tokens are cut to 4,224;
    where no limit is in their reach, to 512.
    """
    longest = len(example.prompt) + max(map(len, example.answers))
    crossed = max((limit for limit in _numbers(config.get_text_config().to_dict()) if limit < longest), default=0)
    length = max(_AT_LEAST, crossed + _BEYOND)
    prompt = example.prompt[: length - _BEYOND // 2]
    return PackedExample(prompt, tuple(answer[: length - len(prompt)] for answer in example.answers))


def _numbers(settings: dict[str, Any]) -> Iterator[int]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif type(value) is int and _LIMITS.search(name):
            yield value


def _own_way(
    model: nn.Module, trial: Pack, pad_id: int, precision: AbstractContextManager[Any], lengths: RotaryLengths
) -> LogprobModel:
    """Texts padded to one length, or each by itself in a model that does not keep padding apart from them."""
    padded, alone = PaddedModel(model, pad_id), UnbatchedModel(model, pad_id)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision:
            run = (
                padded
                if _apart(padded.target_logprobs(trial), alone.target_logprobs(trial)) <= _tolerance(trial)
                else alone
            )
    finally:
        model.train(was_training)
    return _by_length(run, lengths)


def _tolerance(trial: Pack) -> float:
    """In the precision of the surrounding context."""
    return _CLOSE_ENOUGH_IN_16_BITS if torch.is_autocast_enabled(trial.input_ids.device.type) else _CLOSE_ENOUGH


def _by_length(run: LogprobModel, lengths: RotaryLengths) -> LogprobModel:
    return LengthGroupedModel(run, lengths) if lengths else run


def _text_by_text(causal_lm: Any, pack: Pack, lengths: RotaryLengths) -> Tensor:
    """-> [M], by the model's own decoder on each text, without padding and without the logits of all positions"""
    device = pack.input_ids.device
    hidden = []
    for text in [example.prompt + answer for example in pack.examples for answer in example.answers]:
        with lengths.of(len(text)) if lengths else nullcontext():
            output = decoder_of(causal_lm)(input_ids=torch.tensor([text], device=device), use_cache=False)
        hidden.append(output.last_hidden_state[0, :-1])
    return OutputHead(causal_lm).logprobs(torch.cat(hidden)[padded_target_indices(pack).to(device)], pack.targets)


def _apart(found: Tensor, expected: Tensor) -> float:
    """found[M], expected[M] -> the largest root mean square of their difference over consecutive tokens"""
    squares: Sequence[Tensor] = (found - expected).square().split(_BLOCK)
    return max(block.mean().sqrt().item() for block in squares)


def _train_on(model: nn.Module, trial: Pack, packed: LogprobModel, precision: AbstractContextManager[Any]) -> None:
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
