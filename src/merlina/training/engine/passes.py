"""The division of examples into forward passes: which of them share one, and how many positions each computes.

Legend: U examples in a pass, R their texts (a prompt with one answer each), T tokens of the longest text.

Worked example: two examples with prompts of 5 tokens and answers of 3 and 4 tokens, budget 25 positions.

    packed   5 + 2 + 3 = 10 positions each, so both fit into one pass of 20
    padded   the two texts of an example have 8 and 9 tokens: 2 x 9 = 18 positions each, 4 x 9 = 36 for both: two passes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from merlina.training.distributed.ranks import SINGLE_PROCESS, Ranks
from merlina.training.engine.packing import PackedExample


class BatchingStrategy(Protocol):
    """The layout of the examples in a pass, packed or padded."""

    def num_positions(self, examples: Sequence[PackedExample]) -> int:
        """Return the number of positions that a pass over `examples` computes."""

    def longest_text(self, example: PackedExample) -> int:
        """Return the number of positions that the example's longest text takes as model input."""

    def split(self, examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
        """Divide `examples`, by index, into passes of at most `budget` positions. A larger example is a pass alone."""


class PackedBatching:
    """One sequence, each prompt once."""

    def num_positions(self, examples: Sequence[PackedExample]) -> int:
        return sum(example.num_positions for example in examples)

    def longest_text(self, example: PackedExample) -> int:
        return len(example.prompt) + max(len(answer) - 1 for answer in example.answers)

    def split(self, examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
        return _first_fit(examples, budget)


class PaddedBatching:
    """One row for each text, all rows padded to the longest: R x T positions."""

    def num_positions(self, examples: Sequence[PackedExample]) -> int:
        return sum(len(example.answers) for example in examples) * max(map(self.longest_text, examples))

    def longest_text(self, example: PackedExample) -> int:
        return example.longest_text

    def split(self, examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
        """Group texts of similar length, longest first, so that little padding is needed."""
        passes: list[list[int]] = []
        rows, longest = 0, 0
        for index in sorted(range(len(examples)), key=lambda index: -self.longest_text(examples[index])):
            rows += len(examples[index].answers)
            # Examples come in order of length, so the first of a pass determines its T.
            if not passes or rows * longest > budget:
                passes.append([])
                rows, longest = len(examples[index].answers), self.longest_text(examples[index])
            passes[-1].append(index)
        return passes


@dataclass(frozen=True)
class PassPlanner:
    """Divides examples into passes of at most `budget` positions each, after sharing them among ranks (`for_rank`).

    With `ranks_in_lockstep` all ranks must make the same number of passes. `length_limits` are text lengths beyond
    which the model computes all positions of a pass differently (see `rope_length_limits`).
    """

    batching: BatchingStrategy
    budget: int
    ranks: Ranks = SINGLE_PROCESS
    ranks_in_lockstep: bool = False
    length_limits: tuple[int, ...] = ()

    def split(self, examples: Sequence[PackedExample]) -> list[list[int]]:
        """Return the indices of `examples` for each pass. No pass has texts on both sides of a length limit."""
        # For each example, the number of limits below its longest text.
        limits_exceeded = [
            sum(self.batching.longest_text(example) > limit for limit in self.length_limits) for example in examples
        ]
        passes: list[list[int]] = []
        for count in sorted(set(limits_exceeded)):
            group = [index for index, exceeded in enumerate(limits_exceeded) if exceeded == count]
            packs = self.batching.split([examples[index] for index in group], self.budget)
            passes += [[group[index] for index in pack] for pack in packs]
        return passes

    def candidates_for_largest(self, examples: Sequence[PackedExample], count: int) -> Sequence[PackedExample]:
        """Return the `count` largest examples if one pass holds them: no step of `count` examples makes a larger one.

        Otherwise a step can fill passes up to the budget, and all examples are returned.
        """
        chosen = sorted(examples, key=lambda example: -self.batching.num_positions([example]))[:count]
        return chosen if self.batching.num_positions(chosen) <= self.budget else examples

    def largest_pass(self, examples: Sequence[PackedExample]) -> list[PackedExample]:
        """Return the pass over `examples` with the most positions."""
        passes = [[examples[index] for index in indices] for indices in self.split(examples)]
        return max(passes, key=self.batching.num_positions)

    def for_rank(self, examples: Sequence[PackedExample]) -> list[tuple[list[int], bool]]:
        """Return this rank's passes as indices of `examples`, each with whether it is a filler.

        A filler is a pass over the smallest example that adds nothing. A rank without examples makes one, because the
        gradient scaler of float16 must see every step; ranks in lockstep fill up to the largest number of passes.
        """
        sizes = [self.batching.num_positions([example]) for example in examples]
        # Ranks first divide the pairs by size, then each makes passes of its own.
        share = self.ranks.share(sizes)
        passes = [[share[index] for index in indices] for indices in self.split([examples[index] for index in share])]
        number = self.ranks.max(len(passes)) if self.ranks_in_lockstep else max(1, len(passes))
        # The example that is cheapest to compute, and the same one on all ranks.
        smallest = min(range(len(examples)), key=sizes.__getitem__)
        return [(indices, False) for indices in passes] + [([smallest], True)] * (number - len(passes))


def _first_fit(examples: Sequence[PackedExample], budget: int) -> list[list[int]]:
    """Divide by first-fit decreasing: the longest example first, each into the first pack with enough space.

    A segment tree over the free positions of the packs finds that pack in O(log U), so that a whole data set is divided
    quickly. Example with budget 10 and sizes 6, 5, 4, 3: packs [6, 4] and [5, 3].
    """
    packs: list[list[int]] = []
    leaves = 1 << max(0, len(examples) - 1).bit_length()
    # Node 1 is the root and node n has children 2n and 2n + 1. free[n] is the most free positions in any pack below n;
    # leaves of packs that do not exist yet hold the whole budget.
    free = [budget] * (2 * leaves)
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].num_positions):
        size = examples[index].num_positions
        # An example larger than the budget gets a pack of its own. Its leaf becomes negative, so nothing joins it.
        chosen = len(packs)
        if size <= budget:
            # Descend to the first pack with enough space: left if any pack there has it.
            node = 1
            while node < leaves:
                node = 2 * node if free[2 * node] >= size else 2 * node + 1
            chosen = node - leaves
        if chosen == len(packs):
            packs.append([])
        packs[chosen].append(index)
        # Update the leaf of this pack and the maxima above it.
        node = chosen + leaves
        free[node] -= size
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    return packs
