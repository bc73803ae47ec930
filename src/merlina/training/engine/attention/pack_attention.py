"""The attention of a packed forward pass, as one of transformers' attention functions.

transformers passes every keyword argument of the model's forward method to the attention function. A pack's layout
therefore travels with the call itself, also when gradient checkpointing recomputes a layer.

Legend: N positions of the pack, S segments, H query heads, K key heads, D head size of queries and keys, E of values, Q
queries and L keys of one text.

Query n attends to key m if two conditions hold. The pack decides the first: both positions belong to one text. The
model decides the second, by the rule from which it would build its mask: query q of a text may attend to key k of the
same text. For a full layer the rule is k <= q, for a sliding window also k > q - window; other rules, such as chunks,
are possible. Worked example: a prompt of 2 tokens with answers of 2 and 3 tokens (the last of each is not an input) and
a window of 2:

    position n           0    1    2    3    4        position 2 is the first answer, 3 and 4 the second
    index in its text    0    1    2    2    3
    attends to           0   0 1  1 2  1 3  3 4       position 3 follows 1 in its text, so it attends to 1 and itself

The kernel depends on the setting `attn_implementation`, the device and the model:

- blocks: on a CPU (`block_attention`)
- flash: on a CUDA device in 16 bits; torch's variable-length flash attention (`flash_attention`)
- masked: everywhere else, for the settings `eager` and `sdpa`, and for models that cap their scores or have another
  rule; one dense mask for the whole pack
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from merlina.schemas.training.machine import AttentionImplementation
from merlina.training.engine.attention.block_attention import block_attention
from merlina.training.engine.attention.flash_attention import (
    VarlenLayout,
    flash_attention,
    supports_flash_attention,
    varlen_layout,
)
from merlina.training.engine.packing import Pack, PackingError, Segment

NAME = "merlina_packed"
# Layers of other kinds, such as linear attention, carry a state along the sequence, from one text into the next.
_ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}

_SINKS = "has attention sinks, which packed attention does not compute"
# torch's kernels copy a mask unless its rows begin at multiples of this number of elements.
_MASK_ROW = 16
# The number of queries for which a model's mask rule is evaluated to recognize its visibility.
_SAMPLED_QUERIES = 64
# Arguments that transformers passes to attention functions and that do not change the result for a pack.
_WITHOUT_EFFECT = {
    "cache", "cache_position", "is_causal", "output_attentions", "output_hidden_states", "output_router_logits",
    "past_key_values", "position_ids", "return_dict", "use_cache",
}  # fmt: skip


# A mask rule of transformers: (batch, head, q, k) -> whether query q may attend to key k, for index tensors that
# broadcast.
_MaskRule = Callable[[int, int, Tensor, Tensor], Tensor]


class _UnbuiltMask(Tensor):
    """An empty tensor that layers receive in place of a mask; it carries the rule from which the mask would be built.

    A layer that modifies its mask, for instance to select keys, produces a tensor without a rule, which is detected.
    """

    rule: _MaskRule | None = None


@dataclass(frozen=True)
class _Visibility:
    """The keys of its own text that a query attends to: up to itself, with a window only the last `window` of these.

    For any other mask rule, `other` is the rule itself.
    """

    window: int | None = None
    other: _MaskRule | None = None


class PackedAttention:
    """The layout of one pack. The inputs of each kernel are built on first use and shared by all layers."""

    def __init__(self, pack: Pack, implementation: AttentionImplementation) -> None:
        self.segments = pack.segments
        self.implementation = implementation
        self.positions = pack.input_ids.shape[1]
        self._device = pack.input_ids.device
        self._varlen_layout: VarlenLayout | None = None
        self._masks: dict[tuple[_Visibility, torch.dtype], Tensor] = {}
        self._rules: dict[_MaskRule, _Visibility] = {}

    @property
    def is_dense(self) -> bool:
        """Whether any layer so far needed a mask of all queries by all keys."""
        return bool(self._masks)

    def varlen_layout(self) -> VarlenLayout:
        """Return the input of flash attention."""
        if self._varlen_layout is None:
            self._varlen_layout = varlen_layout(self.segments, self._device)
        return self._varlen_layout

    def visibility(self, rule: _MaskRule) -> _Visibility:
        """Return the visibility that a mask rule describes, recognized on the longest text of the pack."""
        if rule not in self._rules:
            # A rule depends on indices in a text alone, so the longest text shows what the shorter ones need.
            longest = max(segment.prefix + segment.end - segment.begin for segment in self.segments)
            self._rules[rule] = _visibility(rule, longest, self._device)
        return self._rules[rule]

    def mask(self, visibility: _Visibility, dtype: torch.dtype) -> Tensor:
        """Return the additive attention mask, shape [N, N]: 0 where query n may attend to key m, otherwise -inf.

        Autograd keeps the mask of every layer. All layers share one tensor, in the dtype that kernels would convert it
        to, so that no copies are kept.
        """
        kind = (visibility, dtype)
        if kind not in self._masks:
            self._masks[kind] = _mask(self.segments, self.positions, visibility, dtype, self._device)
        return self._masks[kind]


def packing_obstacle(causal_lm: Any) -> str | None:
    """Return why a model's structure rules out packed attention, as the rest of a sentence about it; else None.

    This is all that can be known without running the model, so the helper can call it on a model without weights.
    """
    kinds = set(getattr(causal_lm.config.get_text_config(), "layer_types", None) or ()) - _ATTENTION_KINDS
    if kinds:
        return f"has layers of the kind {', '.join(sorted(kinds))}, which cannot work on packed texts"
    if not causal_lm._can_set_attn_implementation():
        return "has attention layers of its own, which cannot work on packed texts"
    if any(name.rsplit(".", 1)[-1] == "sinks" for name, _ in causal_lm.named_parameters()):
        return _SINKS
    return None


def use_packed_attention(model: PreTrainedModel) -> None:
    """Switch the model's attention layers to packs."""
    model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,  # [1, H, N, D]
    key: Tensor,  # [1, K, N, D]
    value: Tensor,  # [1, K, N, E]
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: PackedAttention | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Compute attention over a pack, shape [1, N, H, E]. Raises PackingError if the layer needs anything else."""
    if packed is None:
        raise PackingError("has attention layers that do not receive the layout of packs")
    _require_plain_attention(query, key, packed.positions, dropout, other)
    # With float32 weights under autocast, rotary embeddings return queries and keys in float32, unlike values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5  # 1 / sqrt(D) by default
    visible = _layer_visibility(attention_mask, sliding_window, packed)
    # Neither the block kernel nor flash attention caps scores or knows other rules than windows.
    if softcap is not None or visible.other is not None or packed.implementation in ("eager", "sdpa"):
        mask = packed.mask(visible, value.dtype)
        return _masked(query, key, value, mask, scale, softcap, packed.implementation), None
    if query.device.type == "cpu":
        return block_attention(query[0], key[0], value[0], packed.segments, scale, visible.window)[None], None
    if supports_flash_attention(query, value):
        layout = packed.varlen_layout()
        return flash_attention(query[0], key[0], value[0], layout, scale, visible.window)[None], None
    return _masked(query, key, value, packed.mask(visible, value.dtype), scale, None, "sdpa"), None


def _require_plain_attention(query: Tensor, key: Tensor, positions: int, dropout: float, other: dict[str, Any]) -> None:
    """Raise PackingError if a layer's scores depend on anything but its own text's queries and keys."""
    # Each of these changes results in a way that packs do not reproduce; the model then uses its own forward pass.
    if dropout:
        raise PackingError("drops out attention weights in training, which packed attention does not do")
    if other.get("s_aux") is not None or other.get("sinks") is not None:
        raise PackingError(_SINKS)
    if other.get("is_causal") is False:
        raise PackingError("lets tokens attend to later ones")
    if other.get("position_bias") is not None:
        raise PackingError("adds a bias by position to its attention scores, which packed attention does not compute")
    unknown = sorted(name for name, value in other.items() if name not in _WITHOUT_EFFECT and value is not None)
    if unknown:
        raise PackingError(f"passes {', '.join(unknown)} to its attention, which packed attention does not support")
    if query.shape[0] != 1 or query.shape[2] != positions or key.shape[2] != positions:
        raise PackingError("has attention layers that do not work on all positions of a text, each once")


def _layer_visibility(mask: Tensor | None, window: int | None, packed: PackedAttention) -> _Visibility:
    """Return what a layer's queries attend to: by the rule of its mask, or without one by the window that it passes.

    The layer's own attributes are not used: some models set `sliding_window` on layers that ignore it.
    """
    if mask is None:
        return _Visibility(window)
    rule = mask.rule if isinstance(mask, _UnbuiltMask) else None
    if rule is None:
        raise PackingError("builds or modifies attention masks itself")
    return packed.visibility(rule)


def _unbuilt_mask(
    *, mask_function: _MaskRule, device: torch.device | str = "cpu", use_vmap: bool = False, **_: Any
) -> _UnbuiltMask:
    """Return what layers receive in place of a mask. Raises PackingError if the model adds functions to its masks."""
    if use_vmap:
        raise PackingError("adds its own functions to its attention masks")
    mask = torch.empty(1, 1, 0, 0, device=device).as_subclass(_UnbuiltMask)
    mask.rule = mask_function
    return mask


def _visibility(rule: _MaskRule, length: int, device: torch.device) -> _Visibility:
    """Return the visibility that a mask rule describes on a text of `length` tokens.

    The number of keys that the last query attends to is the window, if there is one. Evenly sampled queries confirm it:
    with chunks of 4 and a text of 6 tokens, the last query attends to keys 4 and 5, as with a window of 2, but query 3
    attends to four keys, so the rule is not a window.
    """
    keys = torch.arange(length, device=device)
    queries = torch.linspace(0, length - 1, min(length, _SAMPLED_QUERIES), device=device).round().long()[:, None]
    seen = rule(0, 0, queries, keys[None]).expand(len(queries), length)
    # A window as long as the text hides nothing; in a longer text the last query attends to `window` keys.
    window = int(seen[-1].sum())
    if not torch.equal(seen, (keys <= queries) & (keys > queries - window)):
        return _Visibility(other=rule)
    return _Visibility(window if window < length else None)


def _masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, implementation: str
) -> Tensor:
    """Compute attention with a dense mask, shape [1, N, H, E]."""
    groups = query.shape[1] // key.shape[1]  # query heads for each key head
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None and implementation != "eager":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)
    scores = (query @ key.transpose(2, 3)) * scale  # [1, H, N, N]
    if softcap is not None:
        # Capping before the mask is added, since tanh(-inf) would become a finite score.
        scores = torch.tanh(scores / softcap) * softcap
    # The softmax in float32, as transformers' eager attention computes it.
    weights = (scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2)


def _mask(
    segments: tuple[Segment, ...],
    positions: int,
    visibility: _Visibility,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the additive mask, shape [N, N]: 0 where the query may attend to the key, otherwise -inf."""
    # Rounded up; the columns beyond N are cut off again below and stay -inf.
    width = -(-positions // _MASK_ROW) * _MASK_ROW
    mask = torch.full((positions, width), -torch.inf, dtype=dtype, device=device)
    for segment in segments:
        # Indices in the text: first those of the prefix, then those of the segment itself.
        text = torch.arange(segment.prefix + segment.end - segment.begin, device=device)
        queries = text[segment.prefix :, None]
        visible = _visible(visibility, queries, text)
        # The keys of a text lie in two ranges of the pack: its prefix and the segment.
        rows = mask[segment.begin : segment.end]
        rows[:, segment.prefix_begin : segment.prefix_end].masked_fill_(visible[:, : segment.prefix], 0)
        rows[:, segment.begin : segment.end].masked_fill_(visible[:, segment.prefix :], 0)
    return mask[:, :positions]


def _visible(visibility: _Visibility, queries: Tensor, keys: Tensor) -> Tensor:
    """Return whether queries attend to keys, shape [Q, L], from queries[Q, 1] and keys[L] as indices in one text."""
    if visibility.other is not None:
        return visibility.other(0, 0, queries, keys[None]).expand(len(queries), len(keys))
    seen = keys <= queries
    return seen if visibility.window is None else seen & (keys > queries - visibility.window)


AttentionInterface.register(NAME, _attend)
# Registered so that transformers builds no mask of all queries by all keys: the layout of the pack replaces it.
AttentionMaskInterface.register(NAME, _unbuilt_mask)
