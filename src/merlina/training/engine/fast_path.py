"""The choice of the fast path, made by comparing packs with the model's own forward pass on trial inputs.

Packs are used if they give the same log-probabilities, otherwise padded batches. Two trials are needed, because
short texts do not show everything and long texts are expensive with all their logits:

- short texts, several in one pack, against the model's own forward pass with its output head, and a backward pass;
- if the run has longer texts, the longest one after short ones, against the model's own decoder on each text alone,
  without gradients. `shorten_for_trial` keeps only as many tokens as are needed to cross every window, chunk and
  position limit that the run itself crosses. This costs a fraction of the run's first step.

Log-probabilities are compared token by token, and the `_BLOCK` consecutive tokens with the largest error decide: an
error that occurs only beyond a window must not be averaged away by correct tokens before it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from merlina.schemas.training.machine import AttentionImplementation
from merlina.training.engine.attention.pack_attention import packing_obstacle
from merlina.training.engine.attention.rotary import LengthGroupedModel, RotaryLengths
from merlina.training.engine.layers import fuse_layers, unfuse_layers
from merlina.training.engine.logprobs import (
    LogprobModel,
    PackedModel,
    PaddedModel,
    UnbatchedModel,
    decoder_of,
    padded_target_indices,
)
from merlina.training.engine.output_head import OutputHead
from merlina.training.engine.packing import Pack, PackedExample, PackingError
from merlina.training.models.unwrapping import unwrap

# The largest accepted error: root mean square of log-probability differences over a block of tokens. In 16 bits a
# single token may differ by 0.1 by rounding alone; a wrong mask or position causes far larger differences.
_TOLERANCE, _TOLERANCE_IN_16_BITS = 1e-2, 0.3
_BLOCK = 32
# The short trial: enough to distinguish texts by their tokens. Logits of whole pairs could be the run's largest tensor.
_TRIAL_EXAMPLES, _TRIAL_TOKENS = 2, 48
# Tokens of a trial text beyond the last limit that it crosses, and the length of one that crosses none.
_TOKENS_BEYOND_LIMIT, _MIN_TRIAL_TOKENS = 128, 512
_LIMITS = re.compile("window|chunk|block|local|length|position|context|topk|floor")

_log = logging.getLogger(__name__)


def choose_logprob_model(
    model: nn.Module,
    trial: Pack,
    pad_id: int,
    implementation: AttentionImplementation,
    precision: AbstractContextManager[Any],
    long_trial: Pack | None = None,
) -> tuple[LogprobModel, str | None]:
    """Return the model as a LogprobModel, and the reason if it must use its own, slower forward pass.

    Both are compared on `trial` and `long_trial` within `precision`, the context in which training computes. The reason
    is the rest of a sentence that begins with "This model". Raises torch.OutOfMemoryError if a trial does not fit.
    """
    causal_lm = unwrap(model)
    lengths = RotaryLengths(causal_lm)
    # The model's own forward pass, which packs must reproduce; created before any layer is replaced.
    original = _by_length(PaddedModel(model, pad_id), lengths)
    reason = packing_obstacle(causal_lm)
    if reason is not None:
        return _padded_model(model, trial, pad_id, precision, lengths), reason
    attention = causal_lm.config._attn_implementation
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision:
            if _in_8_bits(causal_lm):
                # bitsandbytes' product also rounds activations to 8 bits. Fused layers do not, so the reference uses
                # them as well; otherwise the comparison would measure bitsandbytes' rounding.
                fuse_layers(causal_lm)
            expected = original.target_logprobs(trial)
            expected_long = None if long_trial is None else _text_by_text(causal_lm, long_trial, lengths)
            fuse_layers(causal_lm)
            packed = _by_length(PackedModel(model, implementation), lengths)
            # Within this context, layers that are not computed together in this model are found and separated.
            with packed.unchanged_weights():
                error = _largest_error(packed.target_logprobs(trial), expected)
                if long_trial is not None and expected_long is not None:
                    error = max(error, _largest_error(packed.target_logprobs(long_trial), expected_long))
            tolerance = _tolerance(trial)
        # Outside of no_grad: gradients must work as well.
        _try_backward(model, trial, packed, precision)
        if error <= tolerance:
            return packed, None
        reason = f"gives other log-probabilities on packed texts than on each text alone (by {error:.2g} a token)"
    except torch.OutOfMemoryError:
        raise
    except PackingError as obstacle:
        reason = str(obstacle)
    except Exception:
        # A layer may fail in any way on inputs that it was not written for, and a kernel that does not support a GPU or
        # a shape raises a plain RuntimeError.
        _log.debug("The trial of packed texts failed", exc_info=True)
        reason = "has layers that fail on packed texts"
    finally:
        model.train(was_training)
    # The trial failed: undo every replacement.
    unfuse_layers(causal_lm)
    causal_lm.set_attn_implementation(attention)
    return _padded_model(model, trial, pad_id, precision, lengths), reason


def trial_examples(
    config: Any, examples: Sequence[PackedExample]
) -> tuple[list[PackedExample], list[PackedExample] | None]:
    """Return the examples of the short trial, and those of the long one, or None if no text is longer.

    The short trial has the beginnings of the first examples; the long one adds the longest example.
    """
    beginnings = [_beginning(example) for example in examples[:_TRIAL_EXAMPLES]]
    longest = shorten_for_trial(config, max(examples, key=lambda example: example.longest_text))
    is_longer = longest.longest_text > max(example.longest_text for example in beginnings)
    return beginnings, [*beginnings, longest] if is_longer else None


def shorten_for_trial(config: Any, example: PackedExample) -> PackedExample:
    """Truncate an example to the length at which everything that the model does differently with long texts shows.

    Any integer of the model's configuration with a name like `sliding_window`, `attention_chunk_size` or
    `original_max_position_embeddings` may be a limit. With a window of 4,096, texts of 6,000 tokens are truncated to
    4,096 + 128 = 4,224; texts that cross no limit are truncated to 512.
    """
    longest = example.longest_text
    # The largest limit that the longest text crosses; smaller ones are crossed with it.
    crossed = max((limit for limit in _integers(config.get_text_config().to_dict()) if limit < longest), default=0)
    length = max(_MIN_TRIAL_TOKENS, crossed + _TOKENS_BEYOND_LIMIT)
    # Half of the tokens beyond the limit remain for the answers.
    prompt = example.prompt[: length - _TOKENS_BEYOND_LIMIT // 2]
    return PackedExample(prompt, tuple(answer[: length - len(prompt)] for answer in example.answers))


def _beginning(example: PackedExample) -> PackedExample:
    return PackedExample(example.prompt[:_TRIAL_TOKENS], tuple(answer[:_TRIAL_TOKENS] for answer in example.answers))


def _integers(settings: dict[str, Any]) -> Iterator[int]:
    """Yield the integers of a configuration, at any depth, with a name that may be that of a limit."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _integers(value)
        elif type(value) is int and _LIMITS.search(name):
            yield value


def _padded_model(
    model: nn.Module, trial: Pack, pad_id: int, precision: AbstractContextManager[Any], lengths: RotaryLengths
) -> LogprobModel:
    """Return the model on padded batches, or on one text at a time if padding changes its results."""
    padded, unbatched = PaddedModel(model, pad_id), UnbatchedModel(model, pad_id)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision:
            error = _largest_error(padded.target_logprobs(trial), unbatched.target_logprobs(trial))
            run = padded if error <= _tolerance(trial) else unbatched
    finally:
        model.train(was_training)
    return _by_length(run, lengths)


def _tolerance(trial: Pack) -> float:
    """Return the largest accepted error in the precision of the surrounding context."""
    return _TOLERANCE_IN_16_BITS if torch.is_autocast_enabled(trial.input_ids.device.type) else _TOLERANCE


def _by_length(run: LogprobModel, lengths: RotaryLengths) -> LogprobModel:
    return LengthGroupedModel(run, lengths) if lengths else run


def _text_by_text(causal_lm: Any, pack: Pack, lengths: RotaryLengths) -> Tensor:
    """Return the log-probability of each target by the model's own decoder on each text alone, shape [M].

    Neither padding nor the logits of all positions are needed.
    """
    device = pack.input_ids.device
    hidden = []
    for text in [example.prompt + answer for example in pack.examples for answer in example.answers]:
        with lengths.fixed_to(len(text)) if lengths else nullcontext():
            output = decoder_of(causal_lm)(input_ids=torch.tensor([text], device=device), use_cache=False)
        # The last token of a text predicts nothing.
        hidden.append(output.last_hidden_state[0, :-1])
    return OutputHead(causal_lm).logprobs(torch.cat(hidden)[padded_target_indices(pack).to(device)], pack.targets)


def _largest_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest root mean square of found[M] - expected[M] over `_BLOCK` consecutive tokens."""
    squares: Sequence[Tensor] = (found - expected).square().split(_BLOCK)
    return max(block.mean().sqrt().item() for block in squares)


def _try_backward(model: nn.Module, trial: Pack, packed: LogprobModel, precision: AbstractContextManager[Any]) -> None:
    """Run a training pass, which raises an error for attention dropout and for kernels without a backward pass.

    The call leaves no gradients and restores the random state.
    """
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
