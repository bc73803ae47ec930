"""How pairs are laid out for one forward pass: each prompt once, its answers after it, nothing padded.

Legend: U examples in a pack, A answers of each, N token positions of the pack, M targets.

An example's first answer follows its prompt as text does. Every other answer takes its positions from the prompt's
end, as if it followed the prompt directly, and sees the prompt and itself. An answer's last token is a target but no
input: nothing comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class PackingError(Exception):
    """Why a model cannot be run on packs, as the end of a sentence that begins with "This model"."""


@dataclass(frozen=True)
class PackedExample:
    """Token ids of a prompt and of the answers that share it."""

    prompt: list[int]
    answers: tuple[list[int], ...]

    @property
    def positions(self) -> int:
        """How many positions it takes in a pack."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def tokens(self) -> int:
        """How many tokens its texts have, the prompt counted with every answer."""
        return len(self.prompt) * len(self.answers) + sum(map(len, self.answers))


@dataclass(frozen=True)
class Segment:
    """Positions `begin` to `end` attend causally to each other, and all of them to `prefix_begin` to `prefix_end`."""

    begin: int
    end: int
    prefix_begin: int = 0
    prefix_end: int = 0

    @property
    def prefix(self) -> int:
        """Positions of the prefix."""
        return self.prefix_end - self.prefix_begin


@dataclass(frozen=True)
class Pack:
    """One forward pass. Target m belongs to section `section_ids[m]`: (1 + A) * example + section.

    Section 0 is the prompt, section a the a-th answer.
    """

    examples: tuple[PackedExample, ...]
    input_ids: Tensor  # [1, N] int64
    position_ids: Tensor  # [1, N] int64
    segments: tuple[Segment, ...]
    sources: Tensor  # [M] int64, the position that predicts each target
    targets: Tensor  # [M] int64, token ids
    section_ids: Tensor  # [M] int64

    @property
    def answers(self) -> int:
        """A."""
        return len(self.examples[0].answers)

    @property
    def has_prompt_targets(self) -> bool:
        """Whether prompts are predicted too. A prompt of one token has no target even then."""
        return bool((self.section_ids % (1 + self.answers) == 0).any())

    @property
    def tokens(self) -> int:
        """Tokens of its texts, each prompt counted with every answer."""
        return sum(example.tokens for example in self.examples)

    def to(self, device: torch.device) -> Pack:
        moved = (self.input_ids, self.position_ids, self.sources, self.targets, self.section_ids)
        ids, positions, sources, targets, section_ids = (tensor.to(device) for tensor in moved)
        return Pack(self.examples, ids, positions, self.segments, sources, targets, section_ids)


def build_pack(examples: Sequence[PackedExample], *, with_prompt_targets: bool) -> Pack:
    """`examples` as one pack. Without prompt targets only the answers' tokens are predicted."""
    layout = _PackBuilder(with_prompt_targets)
    for number, example in enumerate(examples):
        layout.add(example, first_part=number * (1 + len(example.answers)))
    return Pack(
        examples=tuple(examples),
        input_ids=torch.tensor([layout.ids]),
        position_ids=torch.tensor([layout.positions]),
        segments=tuple(layout.segments),
        sources=torch.tensor(layout.sources),
        targets=torch.tensor(layout.targets),
        section_ids=torch.tensor(layout.section_ids),
    )


class _PackBuilder:
    def __init__(self, with_prompt_targets: bool) -> None:
        self._with_prompt_targets = with_prompt_targets
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.section_ids: list[int] = []

    def add(self, example: PackedExample, first_part: int) -> None:
        begin, prompt = len(self.ids), len(example.prompt)
        self.ids += example.prompt
        self.positions += range(prompt)
        if self._with_prompt_targets:
            self._predict(range(begin, begin + prompt - 1), example.prompt[1:], first_part)
        for number, answer in enumerate(example.answers):
            at, inputs = len(self.ids), len(answer) - 1
            self.ids += answer[:-1]
            self.positions += range(prompt, prompt + inputs)
            self._predict([begin + prompt - 1, *range(at, at + inputs)], answer, first_part + 1 + number)
            if number == 0:
                self.segments.append(Segment(begin, at + inputs))
            elif inputs:
                self.segments.append(Segment(at, at + inputs, begin, begin + prompt))

    def _predict(self, sources: Sequence[int], targets: Sequence[int], part: int) -> None:
        self.sources += sources
        self.targets += targets
        self.section_ids += [part] * len(targets)
