"""Log-probabilities of answers: of packs, the fast way, or of padded batches, the way of the model itself.

Legend: U examples in a pack, A answers of each, N positions, M targets, R sequences, T positions of the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel

from merlina.schemas.training import AttentionImplementation
from merlina.training.engine.attention import PackedAttention, use_packed_attention
from merlina.training.engine.output_head import OutputHead
from merlina.training.engine.packing import Pack, PackingError
from merlina.training.engine.passes import BatchingStrategy, PackedBatching, PaddedBatching

_NO_TARGET = -100


@dataclass(frozen=True)
class Logprobs:
    """Sums of log-probabilities over the tokens of each part, and how many those are; float32.

    Part 0 is the prompt, part a the a-th answer. A prompt whose tokens are no targets has none.
    """

    sums: Tensor  # [U, 1 + A]
    tokens: Tensor  # [U, 1 + A]

    def total_logprob(self, answer: int) -> Tensor:
        """-> [U], log-probability of the answer"""
        return self.sums[:, answer]

    def mean_logprob(self, answer: int) -> Tensor:
        """-> [U], mean log-probability of the answer's tokens"""
        return self.sums[:, answer] / self.tokens[:, answer]

    def mean_logprob_with_prompt(self, answer: int) -> Tensor:
        """-> [U], mean log-probability of the tokens of prompt and answer"""
        return (self.sums[:, 0] + self.sums[:, answer]) / (self.tokens[:, 0] + self.tokens[:, answer])


class LogprobModel(Protocol):
    """Runs a model on a pack."""

    batching: BatchingStrategy

    def __call__(self, pack: Pack) -> Logprobs: ...

    def target_logprobs(self, pack: Pack) -> Tensor:
        """-> [M], log-probability of each target"""


class PackedModel:
    """Every prompt once, no padding, no logits. `model` may be wrapped by peft."""

    batching: BatchingStrategy = PackedBatching()

    def __init__(self, model: nn.Module, implementation: AttentionImplementation) -> None:
        causal_lm = unwrap(model)
        use_packed_attention(causal_lm)
        self._decoder = decoder_of(causal_lm)
        self._head = OutputHead(causal_lm)
        self._implementation = implementation

    def __call__(self, pack: Pack) -> Logprobs:
        return sum_by_section(pack, self.target_logprobs(pack))

    def target_logprobs(self, pack: Pack) -> Tensor:
        """-> [M]"""
        output = self._decoder(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            # Without one, the library would see in the positions where texts begin, and forbid what prompts share.
            attention_mask=torch.ones_like(pack.input_ids),
            use_cache=False,
            packed=PackedAttention(pack, self._implementation),
        )
        hidden = output.last_hidden_state[0]  # [N, H]
        return self._head.logprobs(hidden[pack.sources], pack.targets)


class PaddedModel:
    """Each answer with its own copy of the prompt, padded, and all logits: what any causal language model can do."""

    batching: BatchingStrategy = PaddedBatching()

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id

    def __call__(self, pack: Pack) -> Logprobs:
        return sum_by_section(pack, self.target_logprobs(pack))

    def target_logprobs(self, pack: Pack) -> Tensor:
        """-> [M]"""
        rows = [example.prompt + answer for example in pack.examples for answer in example.answers]
        device = pack.input_ids.device
        return self._of_rows(rows, device)[padded_target_indices(pack).to(device)]

    def _of_rows(self, rows: list[list[int]], device: torch.device) -> Tensor:
        """Of each row's tokens but its first, one row after the other."""
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
        return -losses[mask[:, 1:]]


class UnbatchedModel(PaddedModel):
    """For models that what stands behind a text changes, padding included: each text in a pass by itself."""

    def _of_rows(self, rows: list[list[int]], device: torch.device) -> Tensor:
        return torch.cat([super(UnbatchedModel, self)._of_rows([row], device) for row in rows])


def unwrap(model: Any) -> Any:
    """The causal language model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(causal_lm: Any) -> Any:
    """The model without its output head. Raises PackingError.

    In some families `get_decoder` gives the whole model, or the layer of the output head.
    """
    for module in (causal_lm.get_decoder(), causal_lm.base_model, getattr(causal_lm, "model", None)):
        if isinstance(module, PreTrainedModel) and module is not causal_lm:
            return module
    raise PackingError("does not part into a decoder and an output head")


def sum_by_section(pack: Pack, logprobs: Tensor) -> Logprobs:
    """logprobs[M] -> sums by part"""
    shape = (len(pack.examples), 1 + pack.answers)
    zeros = logprobs.new_zeros(shape[0] * shape[1])
    return Logprobs(
        zeros.index_add(0, pack.section_ids, logprobs).view(shape),
        zeros.index_add(0, pack.section_ids, torch.ones_like(logprobs)).view(shape),
    )


def padded_target_indices(pack: Pack) -> Tensor:
    """[M], where among all predicted tokens of the padded rows, one row after the other, each target of the pack is."""
    with_prompt = pack.has_prompt_targets
    order: list[int] = []
    begin = 0
    for example in pack.examples:
        prompt = len(example.prompt) - 1
        if with_prompt:
            order += range(begin, begin + prompt)
        for answer in example.answers:
            order += range(begin + prompt, begin + prompt + len(answer))
            begin += prompt + len(answer)
    return torch.tensor(order)
