"""How pairs are laid out for one forward pass: each prompt once, its answers after it, nothing padded.

Legend: U units in a pack, A answers of each, N token positions of the pack, M targets.

A unit's first answer follows its prompt as text does. Every other answer takes its positions from the prompt's end, as
if it followed the prompt directly, and sees the prompt and itself. An answer's last token is a target but no input:
nothing comes after it.
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
    """One forward pass. `parts[m]` is which part of which unit target m belongs to: (1 + A) * unit + part.

    Part 0 is the prompt, part a the a-th answer.
    """

    units: tuple[PackedExample, ...]
    input_ids: Tensor  # [1, N] int64
    position_ids: Tensor  # [1, N] int64
    segments: tuple[Segment, ...]
    sources: Tensor  # [M] int64, the position that predicts each target
    targets: Tensor  # [M] int64, token ids
    parts: Tensor  # [M] int64

    @property
    def answers(self) -> int:
        """A."""
        return len(self.units[0].answers)

    @property
    def has_prompt_targets(self) -> bool:
        """Whether prompts are predicted too. A prompt of one token has no target even then."""
        return bool((self.parts % (1 + self.answers) == 0).any())

    @property
    def tokens(self) -> int:
        """Tokens of its texts, each prompt counted with every answer."""
        return sum(unit.tokens for unit in self.units)

    def to(self, device: torch.device) -> Pack:
        moved = (self.input_ids, self.position_ids, self.sources, self.targets, self.parts)
        ids, positions, sources, targets, parts = (tensor.to(device) for tensor in moved)
        return Pack(self.units, ids, positions, self.segments, sources, targets, parts)


def lay_out(units: Sequence[PackedExample], *, with_prompt_targets: bool) -> Pack:
    """`units` as one pack. Without prompt targets only the answers' tokens are predicted."""
    layout = _Layout(with_prompt_targets)
    for number, unit in enumerate(units):
        layout.add(unit, first_part=number * (1 + len(unit.answers)))
    return Pack(
        units=tuple(units),
        input_ids=torch.tensor([layout.ids]),
        position_ids=torch.tensor([layout.positions]),
        segments=tuple(layout.segments),
        sources=torch.tensor(layout.sources),
        targets=torch.tensor(layout.targets),
        parts=torch.tensor(layout.parts),
    )


class _Layout:
    def __init__(self, with_prompt_targets: bool) -> None:
        self._with_prompt_targets = with_prompt_targets
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.parts: list[int] = []

    def add(self, unit: PackedExample, first_part: int) -> None:
        begin, prompt = len(self.ids), len(unit.prompt)
        self.ids += unit.prompt
        self.positions += range(prompt)
        if self._with_prompt_targets:
            self._predict(range(begin, begin + prompt - 1), unit.prompt[1:], first_part)
        for number, answer in enumerate(unit.answers):
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
        self.parts += [part] * len(targets)
