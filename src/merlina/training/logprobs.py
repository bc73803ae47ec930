"""Log-probabilities of answers: of packs, the fast way, or of padded batches, the way of the model itself.

Legend: U units in a pack, A answers of each, N positions, M targets, R sequences, T positions of the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from merlina.schemas.training import AttentionImplementation
from merlina.training.attention import PackedAttention, use_packed_attention
from merlina.training.output_head import OutputHead
from merlina.training.packing import Pack
from merlina.training.passes import Layout, Packed, Padded

_NO_TARGET = -100


@dataclass(frozen=True)
class Logprobs:
    """Sums of log-probabilities over the tokens of each part, and how many those are; float32.

    Part 0 is the prompt, part a the a-th answer. A prompt whose tokens are no targets has none.
    """

    sums: Tensor  # [U, 1 + A]
    tokens: Tensor  # [U, 1 + A]

    def total(self, answer: int) -> Tensor:
        """-> [U], log-probability of the answer"""
        return self.sums[:, answer]

    def mean(self, answer: int) -> Tensor:
        """-> [U], mean log-probability of the answer's tokens"""
        return self.sums[:, answer] / self.tokens[:, answer]

    def with_prompt(self, answer: int) -> Tensor:
        """-> [U], mean log-probability of the tokens of prompt and answer"""
        return (self.sums[:, 0] + self.sums[:, answer]) / (self.tokens[:, 0] + self.tokens[:, answer])


class LogprobModel(Protocol):
    """Runs a model on a pack."""

    layout: Layout

    def __call__(self, pack: Pack) -> Logprobs: ...


class PackedModel:
    """Every prompt once, no padding, no logits. `model` may be wrapped by peft."""

    layout: Layout = Packed()

    def __init__(self, model: nn.Module, implementation: AttentionImplementation) -> None:
        causal_lm = unwrapped(model)
        use_packed_attention(causal_lm)
        self._decoder = causal_lm.get_decoder()
        self._head = OutputHead(causal_lm)
        self._implementation = implementation

    def __call__(self, pack: Pack) -> Logprobs:
        output = self._decoder(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            use_cache=False,
            packed=PackedAttention(pack, self._implementation),
        )
        hidden = output.last_hidden_state[0]  # [N, H]
        return _summed(pack, self._head.logprobs(hidden[pack.sources], pack.targets))


class PaddedModel:
    """Each answer with its own copy of the prompt, padded, and all logits: what any causal language model can do."""

    layout: Layout = Padded()

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id

    def __call__(self, pack: Pack) -> Logprobs:
        rows = [unit.prompt + answer for unit in pack.units for answer in unit.answers]
        device = pack.input_ids.device
        ids = torch.full((len(rows), max(map(len, rows))), self._pad_id)  # [R, T]
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
        ids = ids.to(device)
        logits = self._model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits  # [R, T, V]
        next_ids = ids[:, 1:].masked_fill(~mask[:, 1:], _NO_TARGET)
        losses = F.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), next_ids, ignore_index=_NO_TARGET, reduction="none"
        )
        return _summed(pack, -losses[mask[:, 1:]][_targets_of(pack).to(device)])


def unwrapped(model: Any) -> Any:
    """The causal language model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _summed(pack: Pack, logprobs: Tensor) -> Logprobs:
    """logprobs[M] -> sums by part"""
    shape = (len(pack.units), 1 + pack.answers)
    zeros = logprobs.new_zeros(shape[0] * shape[1])
    return Logprobs(
        zeros.index_add(0, pack.parts, logprobs).view(shape),
        zeros.index_add(0, pack.parts, torch.ones_like(logprobs)).view(shape),
    )


def _targets_of(pack: Pack) -> Tensor:
    """[M], where among all predicted tokens of the padded rows, one row after the other, each target of the pack is."""
    with_prompt = bool((pack.parts == 0).any())
    order: list[int] = []
    begin = 0
    for unit in pack.units:
        prompt = len(unit.prompt) - 1
        if with_prompt:
            order += range(begin, begin + prompt)
        for answer in unit.answers:
            order += range(begin + prompt, begin + prompt + len(answer))
            begin += prompt + len(answer)
    return torch.tensor(order)
