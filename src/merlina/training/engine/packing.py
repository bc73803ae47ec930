"""The layout of a pack: several examples in one sequence, each prompt once, its answers after it, no padding.

Legend: U examples in a pack, A answers of each, N token positions of the pack, M targets.

An example has 1 + A sections: section 0 is the prompt, section a is the a-th answer. A *text* is the prompt followed by
one answer, which is what the model would read without packing. The answers share the prompt's keys and values, so the
prompt is computed once. For this to change nothing, each answer

- has the position ids it would have directly after the prompt, and
- attends to the prompt and to itself, never to another answer (see `Segment`).

The last token of an answer is a target but not an input, since nothing is predicted from it.

Worked example: prompt P = [1, 2, 3], chosen [4, 5], rejected [6, 7, 8], with prompt targets.

    position n        0  1  2  3  4  5
    input id          1  2  3  4  6  7      5 and 8 are targets only
    position id       0  1  2  3  3  4      the rejected answer starts again at 3
    segment           0  0  0  0  1  1      the prefix of segment 1 is positions 0, 1 and 2

    target m          0  1    2  3    4  5  6
    token id          2  3    4  5    6  7  8
    source position   0  1    2  3    2  4  5      both answers' first tokens are predicted from position 2
    section id        0  0    1  1    2  2  2

The prompt's first token has no target, so a prompt of one token has none at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_IntArray = NDArray[np.int64]


class PackingError(Exception):
    """The reason why a model cannot be run on packs: the rest of a sentence that begins with "This model"."""


@dataclass(frozen=True)
class ExampleNoise:
    """The noise on the embeddings of an example (`embedding_noise`): what determines it."""

    alpha: float
    length: int  # number of tokens of the longest text
    seeds: tuple[int, ...]  # [1 + A], of each section


@dataclass(frozen=True)
class PackedExample:
    """The token ids of a prompt and of the answers that share it. Outside of training, there is no noise."""

    prompt: list[int]
    answers: tuple[list[int], ...]
    noise: ExampleNoise | None = None

    def text(self, answer: int) -> PackedExample:
        """Return the prompt with one of the answers, counted from 0, alone."""
        noise = self.noise
        if noise is not None:
            noise = replace(noise, seeds=(noise.seeds[0], noise.seeds[1 + answer]))
        return PackedExample(self.prompt, (self.answers[answer],), noise)

    @property
    def num_positions(self) -> int:
        """The number of positions that the example takes in a pack."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def num_tokens(self) -> int:
        """The number of tokens in all texts: the prompt counts once for each answer."""
        return len(self.prompt) * len(self.answers) + sum(map(len, self.answers))

    @property
    def longest_text(self) -> int:
        """The number of tokens of the longest text, the prompt with one answer."""
        return len(self.prompt) + max(map(len, self.answers))


@dataclass(frozen=True)
class Segment:
    """A range of positions, `begin` to `end`, that attend causally to each other.

    All of them also attend to the positions `prefix_begin` to `prefix_end`, which hold their prompt. The prompt and the
    first answer are one segment without a prefix: they follow each other as they do in the text.
    """

    begin: int
    end: int
    prefix_begin: int = 0
    prefix_end: int = 0

    @property
    def prefix(self) -> int:
        """The number of positions in the prefix."""
        return self.prefix_end - self.prefix_begin


@dataclass(frozen=True)
class Pack:
    """The inputs and targets of one forward pass.

    Target m belongs to section s of example u, where `section_ids[m]` = (1 + A) * u + s.
    """

    examples: tuple[PackedExample, ...]
    input_ids: Tensor  # [1, N] int64
    position_ids: Tensor  # [1, N] int64
    segments: tuple[Segment, ...]
    sources: Tensor  # [M] int64, the position that predicts each target
    targets: Tensor  # [M] int64, token ids
    section_ids: Tensor  # [M] int64
    weights: Tensor | None = None  # [M] float32, the weight of each target; None: 1 for all

    @property
    def num_answers(self) -> int:
        """A, which is the same for all examples."""
        return len(self.examples[0].answers)

    @property
    def has_prompt_targets(self) -> bool:
        """Whether any prompt token is a target."""
        return bool((self.section_ids % (1 + self.num_answers) == 0).any())

    @property
    def num_tokens(self) -> int:
        """The number of tokens in all texts: each prompt counts once for each answer."""
        return sum(example.num_tokens for example in self.examples)

    def to(self, device: torch.device) -> Pack:
        """Return the pack with its tensors on a device."""
        tensors = (self.input_ids, self.position_ids, self.sources, self.targets, self.section_ids)
        # One transfer for all of them.
        moved = torch.cat([tensor.flatten() for tensor in tensors]).to(device)
        parts = moved.split([tensor.numel() for tensor in tensors])
        ids, positions, sources, targets, section_ids = (
            part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)
        )
        weights = None if self.weights is None else self.weights.to(device)
        return Pack(self.examples, ids, positions, self.segments, sources, targets, section_ids, weights)


def build_pack(
    examples: Sequence[PackedExample], *, with_prompt_targets: bool, tail_weight: float | None = None
) -> Pack:
    """Lay out `examples` in one pack. Without prompt targets, only the tokens of answers are predicted.

    `tail_weight` is the weight of those tokens of an answer that lie beyond the length of the example's shortest one.
    """
    builder = _PackBuilder(with_prompt_targets)
    for number, example in enumerate(examples):
        builder.add(example, prompt_section=number * (1 + len(example.answers)))
    return Pack(
        examples=tuple(examples),
        input_ids=_concatenated(builder.ids)[None],
        position_ids=_concatenated(builder.positions)[None],
        segments=tuple(builder.segments),
        sources=_concatenated(builder.sources),
        targets=_concatenated(builder.targets),
        section_ids=_concatenated(builder.section_ids),
        weights=None if tail_weight is None else _target_weights(examples, tail_weight, with_prompt_targets),
    )


def _target_weights(examples: Sequence[PackedExample], tail_weight: float, with_prompt_targets: bool) -> Tensor:
    """Return the weight of each target, shape [M]. Answers of 2 and 3 tokens have 1, 1 and 1, 1, tail_weight."""
    parts = []
    for example in examples:
        shared = min(map(len, example.answers))
        if with_prompt_targets:
            parts.append(torch.ones(len(example.prompt) - 1))
        for answer in example.answers:
            part = torch.ones(len(answer))
            part[shared:] = tail_weight
            parts.append(part)
    return torch.cat(parts)


class _PackBuilder:
    """Collects the parts of a pack as arrays, which are many times as fast as lists of thousands of numbers."""

    def __init__(self, with_prompt_targets: bool) -> None:
        self._with_prompt_targets = with_prompt_targets
        self._num_positions = 0
        self.ids: list[_IntArray] = []
        self.positions: list[_IntArray] = []
        self.segments: list[Segment] = []
        self.sources: list[_IntArray] = []
        self.targets: list[_IntArray] = []
        self.section_ids: list[_IntArray] = []

    def add(self, example: PackedExample, prompt_section: int) -> None:
        begin, prompt, length = self._num_positions, np.array(example.prompt, np.int64), len(example.prompt)
        self._append(prompt, 0)
        if self._with_prompt_targets:
            self._predict(np.arange(begin, begin + length - 1), prompt[1:], prompt_section)
        for number, tokens in enumerate(example.answers):
            at, answer = self._num_positions, np.array(tokens, np.int64)
            end = at + len(answer) - 1
            self._append(answer[:-1], length)
            # The prompt's last position predicts the first token of every answer.
            sources = np.concatenate(([begin + length - 1], np.arange(at, end)))
            self._predict(sources, answer, prompt_section + 1 + number)
            if number == 0:
                self.segments.append(Segment(begin, end))
            elif end > at:
                # An answer of one token has no inputs and therefore no segment.
                self.segments.append(Segment(at, end, begin, begin + length))

    def _append(self, ids: _IntArray, first_position: int) -> None:
        self.ids.append(ids)
        self.positions.append(np.arange(first_position, first_position + len(ids)))
        self._num_positions += len(ids)

    def _predict(self, sources: _IntArray, targets: _IntArray, section_id: int) -> None:
        self.sources.append(sources)
        self.targets.append(targets)
        self.section_ids.append(np.full(len(targets), section_id))


def _concatenated(parts: list[_IntArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
