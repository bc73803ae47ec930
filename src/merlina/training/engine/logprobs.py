"""Log-probabilities of answers: from packs, or from padded batches through the model's own forward pass.

Legend: U examples in a pack, A answers of each, N positions, M targets, R texts, T tokens of the longest text, H hidden
size, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel

from merlina.schemas.training.machine import AttentionImplementation
from merlina.training.engine.adapter_groups import AdapterCasts
from merlina.training.engine.attention.pack_attention import PackedAttention, use_packed_attention
from merlina.training.engine.embedding_noise import noise_of_pack, noise_of_texts, noisy_embeddings
from merlina.training.engine.output_head import OutputHead
from merlina.training.engine.packing import Pack, PackedExample, PackingError
from merlina.training.engine.passes import BatchingStrategy, PackedBatching, PaddedBatching
from merlina.training.models.unwrapping import unwrap

# The label that torch's cross_entropy ignores by convention.
_NO_TARGET = -100


@dataclass(frozen=True)
class Logprobs:
    """Sums of log-probabilities over the tokens of each section, and the numbers of those tokens; float32.

    Column 0 is the prompt, column a the a-th answer. Without prompt targets, column 0 is zero in both. `weighted_sums`
    are sums in which each token counts with its weight in the pack; None if all weights are 1.
    """

    sums: Tensor  # [U, 1 + A]
    tokens: Tensor  # [U, 1 + A]
    weighted_sums: Tensor | None = None  # [U, 1 + A]

    def total_logprob(self, answer: int) -> Tensor:
        """Return the log-probability of an answer, shape [U]."""
        return self.sums[:, answer]

    def weighted_logprob(self, answer: int) -> Tensor:
        """Return the log-probability of an answer with weighted tokens, shape [U]."""
        return self.answer_logprobs()[:, answer - 1]

    def answer_logprobs(self) -> Tensor:
        """Return the log-probability of each answer with weighted tokens, shape [U, A]."""
        return (self.sums if self.weighted_sums is None else self.weighted_sums)[:, 1:]

    def mean_logprob(self, answer: int) -> Tensor:
        """Return the mean log-probability of an answer's tokens, shape [U]."""
        return self.sums[:, answer] / self.tokens[:, answer]

    def mean_logprob_with_prompt(self, answer: int) -> Tensor:
        """Return the mean log-probability of the tokens of prompt and answer, shape [U]."""
        return (self.sums[:, 0] + self.sums[:, answer]) / (self.tokens[:, 0] + self.tokens[:, answer])


class LogprobModel(Protocol):
    """A model that computes the log-probabilities of a pack's targets."""

    batching: BatchingStrategy

    @property
    def is_dense(self) -> bool:
        """Whether the cost of the last pass grew with the square of its positions, by masks of all by all."""

    def __call__(self, pack: Pack) -> Logprobs: ...

    def target_logprobs(self, pack: Pack) -> Tensor:
        """Return the log-probability of each target, shape [M]."""

    def unchanged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the weights do not change, so that passes may share copies of them."""


class PackedModel:
    """Computes packs: each prompt once, without padding and without logits [N, V]. `model` may be wrapped by peft."""

    batching: BatchingStrategy = PackedBatching()
    is_dense = False

    def __init__(self, model: nn.Module, implementation: AttentionImplementation) -> None:
        causal_lm = unwrap(model)
        use_packed_attention(causal_lm)
        self._causal_lm = causal_lm
        self._decoder = decoder_of(causal_lm)
        self._head = OutputHead(causal_lm)
        self._casts = AdapterCasts(causal_lm)
        self._implementation = implementation

    def __call__(self, pack: Pack) -> Logprobs:
        return sum_by_section(pack, self.target_logprobs(pack))

    def target_logprobs(self, pack: Pack) -> Tensor:
        """Return the log-probability of each target, shape [M]."""
        layout = PackedAttention(pack, self._implementation)
        try:
            with noisy_embeddings(self._causal_lm, noise_of_pack(pack.examples)):
                output = self._decoder(
                    input_ids=pack.input_ids,
                    position_ids=pack.position_ids,
                    # Without a mask, transformers infers from position ids where texts begin and hides shared prompts.
                    attention_mask=torch.ones_like(pack.input_ids),
                    use_cache=False,
                    packed=layout,
                )
        except BaseException:
            # Out of memory, for instance: a smaller pass may follow.
            self._casts.forget_results()
            raise
        self.is_dense = layout.is_dense
        hidden = output.last_hidden_state[0]  # [N, H]
        # Only positions that predict a target reach the head. One position may predict several: the prompt's last one.
        # The gradient of index_select adds rows; that of indexing would sort them first.
        return self._head.logprobs(hidden.index_select(0, pack.sources), pack.targets)

    def unchanged_weights(self) -> AbstractContextManager[None]:
        return self._casts.held()


class PaddedModel:
    """Computes padded batches by the model's own forward pass: all logits, and the prompt once for each answer."""

    batching: BatchingStrategy = PaddedBatching()
    is_dense = True

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id

    def __call__(self, pack: Pack) -> Logprobs:
        return sum_by_section(pack, self.target_logprobs(pack))

    def target_logprobs(self, pack: Pack) -> Tensor:
        """Return the log-probability of each target, shape [M]."""
        texts = [example.text(answer) for example in pack.examples for answer in range(pack.num_answers)]
        device = pack.input_ids.device
        return self._text_logprobs(texts, device)[padded_target_indices(pack).to(device)]

    def unchanged_weights(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _text_logprobs(self, texts: list[PackedExample], device: torch.device) -> Tensor:
        """Return the log-probabilities of every token but the first of each text, concatenated."""
        lengths = torch.tensor([text.num_tokens for text in texts])  # [R]
        ids = torch.full((len(texts), int(lengths.max())), self._pad_id)  # [R, T]
        for row, text in zip(ids, texts, strict=True):
            row[: text.num_tokens] = torch.tensor(text.prompt + text.answers[0])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
        ids = ids.to(device)
        with noisy_embeddings(unwrap(self._model), noise_of_texts(texts)):
            logits = self._model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits  # [R, T, V]
        # Position t predicts token t + 1, so labels are shifted by one.
        next_ids = ids[:, 1:].masked_fill(~mask[:, 1:], _NO_TARGET)
        losses = F.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), next_ids, ignore_index=_NO_TARGET, reduction="none"
        )
        # Selecting by the mask concatenates the texts without padding, in order.
        return -losses[mask[:, 1:]]


class UnbatchedModel(PaddedModel):
    """Runs one pass per text, for models with results that depend on the padding."""

    def _text_logprobs(self, texts: list[PackedExample], device: torch.device) -> Tensor:
        return torch.cat([super(UnbatchedModel, self)._text_logprobs([text], device) for text in texts])


def decoder_of(causal_lm: Any) -> Any:
    """Return the model without its output head. Raises PackingError if it has no such part.

    In some families `get_decoder` returns the whole model or the output head's layer, so several places are tried.
    """
    for module in (causal_lm.get_decoder(), causal_lm.base_model, getattr(causal_lm, "model", None)):
        if isinstance(module, PreTrainedModel) and module is not causal_lm:
            return module
    raise PackingError("cannot be separated into a decoder and an output head")


def sum_by_section(pack: Pack, logprobs: Tensor) -> Logprobs:
    """Sum the log-probabilities of targets, shape [M], over the sections they belong to."""
    # index_add sums targets with equal section ids; all ids together are the flattened [U, 1 + A].
    shape = (len(pack.examples), 1 + pack.num_answers)
    zeros = logprobs.new_zeros(shape[0] * shape[1])
    weighted = None
    if pack.weights is not None:
        weighted = zeros.index_add(0, pack.section_ids, logprobs * pack.weights.to(logprobs.dtype)).view(shape)
    return Logprobs(
        zeros.index_add(0, pack.section_ids, logprobs).view(shape),
        zeros.index_add(0, pack.section_ids, torch.ones_like(logprobs)).view(shape),
        weighted,
    )


def padded_target_indices(pack: Pack) -> Tensor:
    """Return where each target of the pack is among all predicted tokens of the separate texts, shape [M].

    The prompt's targets are taken from the text of the first answer. Example: prompt of 3 tokens, answers of 2 and 1.
    The texts predict 4 and 3 tokens, numbered 0 to 3 and 4 to 6. With prompt targets the result is
    [0, 1 (prompt), 2, 3 (first answer), 6 (second answer)].
    """
    with_prompt = pack.has_prompt_targets
    order: list[int] = []
    begin = 0
    for example in pack.examples:
        # The first token of a text is not predicted.
        predicted = len(example.prompt) - 1
        if with_prompt:
            order += range(begin, begin + predicted)
        for answer in example.answers:
            # The answer's tokens follow the prompt's in the text, from the one that the prompt's last token predicts.
            order += range(begin + predicted, begin + predicted + len(answer))
            begin += predicted + len(answer)
    return torch.tensor(order)
