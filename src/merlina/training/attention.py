"""The attention of a packed forward pass, as one of transformers' attention functions.

transformers hands any keyword of the model's forward on to the attention function, so a pack's layout comes with the
call itself, also where a layer is computed again for its gradients. Which kernel does the work:

- blocks: on a processor (`block_attention`)
- varlen: on a CUDA device in 16 bits; torch's own variable-length flash attention, with the prompt's keys repeated for
  each further answer
- masked: anywhere else, and where a model caps its scores; one dense mask for the whole pack
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from merlina.schemas.training import AttentionImplementation
from merlina.training.block_attention import block_attention
from merlina.training.packing import Pack, Segment

NAME = "merlina_packed"

# From Ampere on, and up to this size of a head.
_FLASH_CAPABILITY, _FLASH_HEAD = (8, 0), 256
# Kernels copy a mask whose rows don't begin at multiples of it.
_MASK_ROW = 16


@dataclass(frozen=True)
class _Varlen:
    """Which keys each segment sees, end to end, and where segments begin among queries and among those keys."""

    keys: Tensor  # [sum of keys] int64
    query_begins: Tensor  # [S + 1] int32
    key_begins: Tensor  # [S + 1] int32
    longest_query: int
    longest_key: int


class PackedAttention:
    """The layout of one pack, and how attention is computed over it. What kernels need is made when first asked."""

    def __init__(self, pack: Pack, implementation: AttentionImplementation) -> None:
        self.segments = pack.segments
        self.implementation = implementation
        self._device = pack.input_ids.device
        self._positions = pack.input_ids.shape[1]
        self._varlen: _Varlen | None = None
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def varlen(self) -> _Varlen:
        if self._varlen is None:
            self._varlen = _varlen(self.segments, self._device)
        return self._varlen

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[N, N], what is added to the score of query n and key m: 0 where it sees it, else minus infinity.

        Autograd keeps a mask for each layer: the same one for all of them, and in the dtype that kernels would turn
        it into.
        """
        kind = (window, dtype)
        if kind not in self._masks:
            self._masks[kind] = _mask(self.segments, self._positions, window, dtype, self._device)
        return self._masks[kind]


def use_packed_attention(model: PreTrainedModel) -> None:
    """Lets the model's attention layers work on packs."""
    model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module,
    query: Tensor,  # [1, H, N, D]
    key: Tensor,  # [1, K, N, D]
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: PackedAttention | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """-> [1, N, H, D]"""
    if packed is None or dropout or other.get("s_aux") is not None or other.get("position_bias") is not None:
        raise NotImplementedError("this attention can't be packed")
    # Autocast leaves what rotary embeddings make of float32 weights' queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window or getattr(module, "sliding_window", None)
    if softcap is not None or packed.implementation in ("eager", "sdpa"):
        mask = packed.mask(window, value.dtype)
        return _masked(query, key, value, mask, scale, softcap, packed.implementation), None
    if query.device.type == "cpu":
        return block_attention(query[0], key[0], value[0], packed.segments, scale, window)[None], None
    if query.device.type == "cuda" and _takes_flash_attention(query):
        return _attend_varlen(query[0], key[0], value[0], packed.varlen(), scale, window)[None], None
    return _masked(query, key, value, packed.mask(window, value.dtype), scale, None, "sdpa"), None


def _takes_flash_attention(query: Tensor) -> bool:
    is_new_enough = torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY
    fits = query.shape[-1] <= _FLASH_HEAD and query.dtype in (torch.bfloat16, torch.float16)
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
    segments: tuple[Segment, ...], positions: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[N, N], 0 where a key is in its query's own text, not after it and within its window"""
    width = -(-positions // _MASK_ROW) * _MASK_ROW
    mask = torch.full((positions, width), -torch.inf, dtype=dtype, device=device)
    for segment in segments:
        text = torch.arange(segment.prefix + segment.end - segment.begin, device=device)
        queries = text[segment.prefix :, None]
        seen = text <= queries
        if window is not None:
            seen &= text > queries - window
        rows = mask[segment.begin : segment.end]
        rows[:, segment.prefix_begin : segment.prefix_end].masked_fill_(seen[:, : segment.prefix], 0)
        rows[:, segment.begin : segment.end].masked_fill_(seen[:, segment.prefix :], 0)
    return mask[:, :positions]


AttentionInterface.register(NAME, _attend)
# The layout says who sees whom; a mask would be of the size of all queries by all keys.
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
