"""The attention of a packed forward pass, as one of transformers' attention functions.

transformers hands any keyword of the model's forward on to the attention function, so a pack's layout comes with the
call itself, also where a layer is computed again for its gradients.

Legend: N positions of the pack, S segments, H query heads, K key heads, D head size of queries and keys, E of values, Q
queries and L keys of one text.

Two questions decide whether query n sees key m. The pack answers the first: are both in one text? The model answers
the second, by the rule that it would make its mask of: does query q of a text see key k of it? A full layer has
k <= q, a sliding one also k > q - window, and others are possible (chunks, for instance). Example, a prompt of 2
tokens with answers of 2 and 3, whose last tokens are no inputs, and a window of 2:

    position n           0  1  2  3  4        position 2 is the first answer, 3 and 4 the second
    index in its text    0  1  2  2  3
    sees positions       0 01 12 13 34        3 follows 1 in its text, so it sees 1 and itself

Which kernel does the work:

- blocks: on a processor (`block_attention`)
- varlen: on a CUDA device in 16 bits; torch's own variable-length flash attention, with the prompt's keys repeated for
  each further answer
- masked: anywhere else, and where a model caps its scores or has another rule; one dense mask for the whole pack
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from merlina.schemas.training import AttentionImplementation
from merlina.training.engine.block_attention import block_attention
from merlina.training.engine.packing import Pack, PackingError, Segment

NAME = "merlina_packed"
# Other layers, such as linear attention, carry one sequence's state into the next.
_ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}

_SINKS = "has attention sinks, which packed attention does not compute"
# From Ampere on, and up to this size of a head.
_FLASH_CAPABILITY, _FLASH_HEAD = (8, 0), 256
# Kernels copy a mask whose rows don't begin at multiples of it.
_MASK_ROW = 16
# Of a model's rule of who sees whom, for how many queries of a text it is asked.
_ASKED_QUERIES = 64
# What transformers hands to attention functions beside queries, keys and values, and a pack makes no use of.
_WITHOUT_EFFECT = {
    "cache", "cache_position", "is_causal", "output_attentions", "output_hidden_states", "output_router_logits",
    "past_key_values", "position_ids", "return_dict", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class _Varlen:
    """Which keys each segment sees, end to end, and where segments begin among queries and among those keys."""

    keys: Tensor  # [sum of keys] int64
    query_begins: Tensor  # [S + 1] int32
    key_begins: Tensor  # [S + 1] int32
    longest_query: int
    longest_key: int


# Whether query q of a text sees its key k, for tensors of indices that broadcast: (batch, head, q, k) -> bool.
_Sees = Callable[[int, int, Tensor, Tensor], Tensor]


class _UnbuiltMask(Tensor):
    """What a model's layers receive in place of a mask: empty, with the rule by which the mask would be made.

    A layer that changes it (to see only some chosen keys, for instance) hands on a tensor without a rule.
    """

    sees: _Sees | None = None


@dataclass(frozen=True)
class _Visibility:
    """Which of its text's keys a query sees: none after itself, and with a window only the last `window` of those.

    For any other pattern, `other` is the rule itself.
    """

    window: int | None = None
    other: _Sees | None = None


class PackedAttention:
    """The layout of one pack, and how attention is computed over it. What kernels need is made when first asked."""

    def __init__(self, pack: Pack, implementation: AttentionImplementation) -> None:
        self.segments = pack.segments
        self.implementation = implementation
        self.positions = pack.input_ids.shape[1]
        self._device = pack.input_ids.device
        self._varlen: _Varlen | None = None
        self._masks: dict[tuple[_Visibility, torch.dtype], Tensor] = {}
        self._rules: dict[_Sees, _Visibility] = {}

    def varlen(self) -> _Varlen:
        if self._varlen is None:
            self._varlen = _varlen(self.segments, self._device)
        return self._varlen

    def visibility(self, sees: _Sees) -> _Visibility:
        """The pattern of a model's rule, found by asking it about the longest text of the pack."""
        if sees not in self._rules:
            longest = max(segment.prefix + segment.end - segment.begin for segment in self.segments)
            self._rules[sees] = _visibility(sees, longest, self._device)
        return self._rules[sees]

    def mask(self, visibility: _Visibility, dtype: torch.dtype) -> Tensor:
        """[N, N], what is added to the score of query n and key m: 0 where it sees it, else minus infinity.

        Autograd keeps a mask for each layer: the same one for all of them, and in the dtype that kernels would turn
        it into.
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
    """Lets the model's attention layers work on packs."""
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
    """-> [1, N, H, E]. Raises PackingError."""
    if packed is None:
        raise PackingError("has attention layers that are not told how texts are packed")
    _check(query, key, packed.positions, dropout, other)
    # Autocast leaves what rotary embeddings make of float32 weights' queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    seen = _seen(attention_mask, sliding_window, packed)
    if softcap is not None or seen.other is not None or packed.implementation in ("eager", "sdpa"):
        mask = packed.mask(seen, value.dtype)
        return _masked(query, key, value, mask, scale, softcap, packed.implementation), None
    if query.device.type == "cpu":
        return block_attention(query[0], key[0], value[0], packed.segments, scale, seen.window)[None], None
    if query.device.type == "cuda" and _takes_flash_attention(query, value):
        return _attend_varlen(query[0], key[0], value[0], packed.varlen(), scale, seen.window)[None], None
    return _masked(query, key, value, packed.mask(seen, value.dtype), scale, None, "sdpa"), None


def _check(query: Tensor, key: Tensor, positions: int, dropout: float, other: dict[str, Any]) -> None:
    """Raises PackingError where a layer wants more than scores of its own text's queries and keys."""
    if dropout:
        raise PackingError("drops out attention weights in training, which packed attention does not do")
    if other.get("s_aux") is not None or other.get("sinks") is not None:
        raise PackingError(_SINKS)
    if other.get("is_causal") is False:
        raise PackingError("lets tokens see those after them")
    if other.get("position_bias") is not None:
        raise PackingError("adds a bias by position to its attention scores, which packed attention does not compute")
    unknown = sorted(name for name, value in other.items() if name not in _WITHOUT_EFFECT and value is not None)
    if unknown:
        raise PackingError(f"gives its attention {', '.join(unknown)}, which packed attention does not know")
    if query.shape[0] != 1 or query.shape[2] != positions or key.shape[2] != positions:
        raise PackingError("has attention layers that do not work on all positions of a text, each once")


def _seen(mask: Tensor | None, window: int | None, packed: PackedAttention) -> _Visibility:
    """A layer's mask says what it sees; where a layer has none, the window that it passes does.

    Never the layer's own attributes: some models keep a `sliding_window` on layers that do not use it.
    """
    if mask is None:
        return _Visibility(window)
    sees = mask.sees if isinstance(mask, _UnbuiltMask) else None
    if sees is None:
        raise PackingError("makes or changes the masks of its attention itself")
    return packed.visibility(sees)


def _unbuilt_mask(
    *, mask_function: _Sees, device: torch.device | str = "cpu", use_vmap: bool = False, **_: Any
) -> _UnbuiltMask:
    """What the library's functions that make masks return for packs."""
    if use_vmap:
        raise PackingError("adds a function of its own to its attention masks")
    mask = torch.empty(1, 1, 0, 0, device=device).as_subclass(_UnbuiltMask)
    mask.sees = mask_function
    return mask


def _visibility(sees: _Sees, length: int, device: torch.device) -> _Visibility:
    """The pattern of a rule on a text of `length` tokens.

    The last query sees as many keys as the window is wide. Whether that holds for the others is looked up for some of
    them, spread evenly: with chunks of 4 and a text of 6 tokens, the last query sees keys 4 and 5 as with a window of
    2, but query 3 sees four keys.
    """
    keys = torch.arange(length, device=device)
    queries = torch.linspace(0, length - 1, min(length, _ASKED_QUERIES), device=device).round().long()[:, None]
    seen = sees(0, 0, queries, keys[None]).expand(len(queries), length)
    window = int(seen[-1].sum())
    if not torch.equal(seen, (keys <= queries) & (keys > queries - window)):
        return _Visibility(other=sees)
    return _Visibility(window if window < length else None)


def _takes_flash_attention(query: Tensor, value: Tensor) -> bool:
    is_new_enough = torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY
    fits = query.shape[-1] == value.shape[-1] <= _FLASH_HEAD and query.dtype in (torch.bfloat16, torch.float16)
    return is_new_enough and fits and _varlen_is_complete()


@cache
def _varlen_is_complete() -> bool:
    """Whether this torch can tell its kernel a scale, a window, and that queries share keys; older ones can't."""
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, varlen: _Varlen, scale: float, window: int | None
) -> Tensor:
    """query[H, N, D], key[K, N, D] -> [N, H, D]"""
    from torch.nn.attention.varlen import varlen_attn

    # A query sees keys up to its own distance from the end, so segments of unequal lengths are right as they are.
    result: Any = varlen_attn(
        query.transpose(0, 1).contiguous(),
        key.transpose(0, 1)[varlen.keys],
        value.transpose(0, 1)[varlen.keys],
        varlen.query_begins,
        varlen.key_begins,
        varlen.longest_query,
        varlen.longest_key,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return result  # without auxiliary outputs asked for, one tensor


def _masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, how: str
) -> Tensor:
    """-> [1, N, H, D]"""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None and how != "eager":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)
    scores = (query @ key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = (scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2)


def _varlen(segments: tuple[Segment, ...], device: torch.device) -> _Varlen:
    keys: list[int] = []
    query_begins, key_begins = [0], [0]
    for segment in segments:
        keys += range(segment.prefix_begin, segment.prefix_end)
        keys += range(segment.begin, segment.end)
        query_begins.append(segment.end)
        key_begins.append(len(keys))
    return _Varlen(
        torch.tensor(keys, device=device),
        torch.tensor(query_begins, dtype=torch.int32, device=device),
        torch.tensor(key_begins, dtype=torch.int32, device=device),
        max(segment.end - segment.begin for segment in segments),
        max(segment.end - segment.begin + segment.prefix for segment in segments),
    )


def _mask(
    segments: tuple[Segment, ...],
    positions: int,
    visibility: _Visibility,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """[N, N], 0 where a key is in its query's own text and the query sees it there"""
    width = -(-positions // _MASK_ROW) * _MASK_ROW
    mask = torch.full((positions, width), -torch.inf, dtype=dtype, device=device)
    for segment in segments:
        text = torch.arange(segment.prefix + segment.end - segment.begin, device=device)
        queries = text[segment.prefix :, None]
        seen = _pattern(visibility, queries, text)
        rows = mask[segment.begin : segment.end]
        rows[:, segment.prefix_begin : segment.prefix_end].masked_fill_(seen[:, : segment.prefix], 0)
        rows[:, segment.begin : segment.end].masked_fill_(seen[:, segment.prefix :], 0)
    return mask[:, :positions]


def _pattern(visibility: _Visibility, queries: Tensor, keys: Tensor) -> Tensor:
    """queries[Q, 1], keys[L], both as indices in one text -> [Q, L], whether the query sees the key"""
    if visibility.other is not None:
        return visibility.other(0, 0, queries, keys[None]).expand(len(queries), len(keys))
    seen = keys <= queries
    return seen if visibility.window is None else seen & (keys > queries - visibility.window)


AttentionInterface.register(NAME, _attend)
# The layout says which text a position is in; a mask would be of the size of all queries by all keys.
AttentionMaskInterface.register(NAME, _unbuilt_mask)
