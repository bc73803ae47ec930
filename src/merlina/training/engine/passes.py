"""How examples become forward passes: which of them go together, and what that costs.

Legend: U examples in a pass, R their texts, each a prompt with one answer, T positions of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from merlina.training.distributed.ranks import SINGLE_PROCESS, Ranks
from merlina.training.engine.packing import PackedExample


class BatchingStrategy(Protocol):
    """How a pass holds its examples."""

    def size(self, examples: Sequence[PackedExample]) -> int:
        """Positions that a pass of them computes."""

    def reach(self, example: PackedExample) -> int:
        """Positions of its longest text."""

    def cut(self, examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
        """Return indices of `examples` in passes of at most `budget` positions; a larger example is alone."""


class PackedBatching:
    """End to end, each prompt once."""

    def size(self, examples: Sequence[PackedExample]) -> int:
        return sum(example.positions for example in examples)

    def reach(self, example: PackedExample) -> int:
        return len(example.prompt) + max(len(answer) - 1 for answer in example.answers)

    def cut(self, examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
        return _first_fit(examples, budget)


class PaddedBatching:
    """Each text a row, all rows as long as the longest: R x T."""

    def size(self, examples: Sequence[PackedExample]) -> int:
        return sum(len(example.answers) for example in examples) * max(map(self.reach, examples))

    def reach(self, example: PackedExample) -> int:
        return len(example.prompt) + max(map(len, example.answers))

    def cut(self, examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
        """Those of like length together: the longest first, each with the one before it while there is room."""
        passes: list[list[int]] = []
        rows, longest = 0, 0
        for index in sorted(range(len(examples)), key=lambda index: -self.reach(examples[index])):
            rows += len(examples[index].answers)
            if not passes or rows * longest > budget:
                passes.append([])
                rows, longest = len(examples[index].answers), self.reach(examples[index])
            passes[-1].append(index)
        return passes


@dataclass(frozen=True)
class PassPlanner:
    """Of at most `budget` positions each, shared among ranks.

    `ranks_in_lockstep` says that all ranks must make the same number of them. `limits` are lengths beyond which the
    model computes all positions of a pass otherwise, see `rope_length_limits`.
    """

    batching: BatchingStrategy
    budget: int
    ranks: Ranks = SINGLE_PROCESS
    ranks_in_lockstep: bool = False
    limits: tuple[int, ...] = ()

    def cut(self, examples: Sequence[PackedExample]) -> list[list[int]]:
        """Indices of `examples`, pass by pass, none with texts on both sides of a limit."""
        beyond = [sum(self.batching.reach(example) > limit for limit in self.limits) for example in examples]
        passes: list[list[int]] = []
        for side in sorted(set(beyond)):
            there = [index for index, of_example in enumerate(beyond) if of_example == side]
            packs = self.batching.cut([examples[index] for index in there], self.budget)
            passes += [[there[index] for index in pack] for pack in packs]
        return passes

    def heaviest(self, examples: Sequence[PackedExample], most: int) -> Sequence[PackedExample]:
        """Return the `most` largest examples where a pass has room for them all, since no step makes a larger one.

        Otherwise passes are filled up to the budget, and all examples are returned.
        """
        chosen = sorted(examples, key=lambda example: -self.batching.size([example]))[:most]
        return chosen if self.batching.size(chosen) <= self.budget else examples

    def largest(self, examples: Sequence[PackedExample]) -> list[PackedExample]:
        """Return the pass with the most positions that the budget allows, or the largest example."""
        passes = [[examples[index] for index in indices] for indices in self.cut(examples)]
        return max(passes, key=self.batching.size)

    def for_rank(self, examples: Sequence[PackedExample]) -> list[tuple[list[int], bool]]:
        """Indices of those examples that are this rank's, pass by pass; and whether each pass counts.

        One that doesn't is another rank's again: a rank without a pair makes a pass too, since what scales float16's
        gradients must see every step; and where ranks are in step all make the same number of them.
        """
        sizes = [self.batching.size([example]) for example in examples]
        share = self.ranks.share(sizes)
        passes = [[share[index] for index in indices] for indices in self.cut([examples[index] for index in share])]
        number = self.ranks.max(len(passes)) if self.ranks_in_lockstep else max(1, len(passes))
        smallest = min(range(len(examples)), key=sizes.__getitem__)
        return [(indices, True) for indices in passes] + [([smallest], False)] * (number - len(passes))


def rope_length_limits(config: Any) -> tuple[int, ...]:
    """Lengths beyond which a transformers model turns all positions of a pass by other angles, see `rotary`."""
    limits = set()
    for kind in rope_kinds(config):
        if kind.get("rope_type") == "longrope":
            limits.add(kind["original_max_position_embeddings"])
        elif "dynamic" in (kind.get("rope_type") or ""):
            # A longer pass before leaves its angles to one that reaches just there.
            limits.add(config.get_text_config().max_position_embeddings - 1)
    return tuple(sorted(limits))


def rope_kinds(config: Any) -> list[dict[str, Any]]:
    """The parameters of a model's rotary embeddings: one set for all layers, or one for each kind of them."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [parameters, *(value for value in parameters.values() if isinstance(value, dict))]


def _first_fit(examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
    """The longest first, each into the first pack that has room.

    By a tree over the rooms of the packs, so that whole data sets are cut in no time.
    """
    packs: list[list[int]] = []
    leaves = 1 << max(0, len(examples) - 1).bit_length()
    # A pack that isn't begun has room for anything that fits at all. rooms[n] is the most below node n, 1 is the root.
    rooms = [budget] * (2 * leaves)
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].positions):
        size = examples[index].positions
        chosen = len(packs)
        if size <= budget:
            node = 1
            while node < leaves:
                node = 2 * node if rooms[2 * node] >= size else 2 * node + 1
            chosen = node - leaves
        if chosen == len(packs):
            packs.append([])
        packs[chosen].append(index)
        node = chosen + leaves
        rooms[node] -= size
        while node > 1:
            node //= 2
            rooms[node] = max(rooms[2 * node], rooms[2 * node + 1])
    return packs
