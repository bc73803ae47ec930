"""How units become forward passes: which of them go together, and what that costs.

Legend: U units in a pass, R their texts, each a prompt with one answer, T positions of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from merlina.training.distributed.ranks import ALONE, Ranks
from merlina.training.engine.packing import PackedExample


class Layout(Protocol):
    """How a pass holds its units."""

    def size(self, units: Sequence[PackedExample]) -> int:
        """Positions that a pass of them computes."""

    def reach(self, unit: PackedExample) -> int:
        """Positions of its longest text."""

    def cut(self, units: Sequence[PackedExample], budget: int) -> list[list[int]]:
        """Indices of `units`, cut into passes of at most `budget` positions; a larger unit is a pass by itself."""


class Packed:
    """End to end, each prompt once."""

    def size(self, units: Sequence[PackedExample]) -> int:
        return sum(unit.positions for unit in units)

    def reach(self, unit: PackedExample) -> int:
        return len(unit.prompt) + max(len(answer) - 1 for answer in unit.answers)

    def cut(self, units: Sequence[PackedExample], budget: int) -> list[list[int]]:
        return _first_fit(units, budget)


class Padded:
    """Each text a row, all rows as long as the longest: R x T."""

    def size(self, units: Sequence[PackedExample]) -> int:
        return sum(len(unit.answers) for unit in units) * max(map(self.reach, units))

    def reach(self, unit: PackedExample) -> int:
        return len(unit.prompt) + max(map(len, unit.answers))

    def cut(self, units: Sequence[PackedExample], budget: int) -> list[list[int]]:
        """Those of like length together: the longest first, each with the one before it while there is room."""
        passes: list[list[int]] = []
        rows, longest = 0, 0
        for index in sorted(range(len(units)), key=lambda index: -self.reach(units[index])):
            rows += len(units[index].answers)
            if not passes or rows * longest > budget:
                passes.append([])
                rows, longest = len(units[index].answers), self.reach(units[index])
            passes[-1].append(index)
        return passes


@dataclass(frozen=True)
class Passes:
    """Of at most `budget` positions each, shared among ranks.

    `are_in_step` says that all ranks must make the same number of them. `limits` are lengths of text beyond which the
    model computes all positions of a pass otherwise, see `limits_of_positions`.
    """

    layout: Layout
    budget: int
    ranks: Ranks = ALONE
    are_in_step: bool = False
    limits: tuple[int, ...] = ()

    def cut(self, units: Sequence[PackedExample]) -> list[list[int]]:
        """Indices of `units`, pass by pass, none with texts on both sides of a limit."""
        beyond = [sum(self.layout.reach(unit) > limit for limit in self.limits) for unit in units]
        passes: list[list[int]] = []
        for side in sorted(set(beyond)):
            there = [index for index, of_unit in enumerate(beyond) if of_unit == side]
            packs = self.layout.cut([units[index] for index in there], self.budget)
            passes += [[there[index] for index in pack] for pack in packs]
        return passes

    def heaviest(self, units: Sequence[PackedExample], most: int) -> Sequence[PackedExample]:
        """Return the `most` largest units where a pass has room for them all, since no step makes a larger one.

        Otherwise passes are filled up to the budget, and all units are returned.
        """
        chosen = sorted(units, key=lambda unit: -self.layout.size([unit]))[:most]
        return chosen if self.layout.size(chosen) <= self.budget else units

    def largest(self, units: Sequence[PackedExample]) -> list[PackedExample]:
        """The pass of `units` with the most positions that the budget allows; the largest unit where that is larger."""
        passes = [[units[index] for index in indices] for indices in self.cut(units)]
        return max(passes, key=self.layout.size)

    def of_rank(self, units: Sequence[PackedExample]) -> list[tuple[list[int], bool]]:
        """Indices of those units that are this rank's, pass by pass; and whether each pass counts.

        One that doesn't is another rank's again: a rank without a pair makes a pass too, since what scales float16's
        gradients must see every step; and where ranks are in step all make the same number of them.
        """
        sizes = [self.layout.size([unit]) for unit in units]
        share = self.ranks.share(sizes)
        passes = [[share[index] for index in indices] for indices in self.cut([units[index] for index in share])]
        number = self.ranks.most(len(passes)) if self.are_in_step else max(1, len(passes))
        smallest = min(range(len(units)), key=sizes.__getitem__)
        return [(indices, True) for indices in passes] + [([smallest], False)] * (number - len(passes))


def limits_of_positions(config: Any) -> tuple[int, ...]:
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


def _first_fit(units: Sequence[PackedExample], budget: int) -> list[list[int]]:
    """The longest first, each into the first pack that has room.

    By a tree over the rooms of the packs, so that whole data sets are cut in no time.
    """
    packs: list[list[int]] = []
    leaves = 1 << max(0, len(units) - 1).bit_length()
    # A pack that isn't begun has room for anything that fits at all. rooms[n] is the most below node n, 1 is the root.
    rooms = [budget] * (2 * leaves)
    for index in sorted(range(len(units)), key=lambda index: -units[index].positions):
        size = units[index].positions
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
