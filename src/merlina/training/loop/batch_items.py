"""The items of the Trainer's batches, with the reference's log-probabilities that the objective needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merlina.schemas.training.config import TrainingConfig
from merlina.training.engine.packing import PackedExample
from merlina.training.evaluation_sets import EvaluationSet
from merlina.training.loop.batch_item import BatchItem
from merlina.training.loop.pass_runner import PassRunner, packed_example
from merlina.training.loop.reference import digest_of, reference_logprobs
from merlina.training.loop.unrelated_examples import unrelated_examples
from merlina.training.models.tokens import TokenPair
from merlina.training.reporter import Reporter, StoppedEarly

# Passes for each rank between two checks for a stop: dividing fewer among ranks by length would be uneven.
_PASSES_PER_RANK = 4
_SECONDS_BETWEEN_NOTES = 60.0


class LazyItems(Sequence[BatchItem]):
    """Items that are made when they are used, from pairs and, if the objective needs them, `references`, [U, A]."""

    def __init__(self, pairs: Sequence[TokenPair], config: TrainingConfig, references: Tensor | None = None) -> None:
        self._pairs = pairs
        self._config = config
        self._references = references

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        pair = self._pairs[index]
        reference = None if self._references is None else self._references[index]
        return BatchItem(packed_example(pair, self._config), pair.row, reference)


class BatchItems:
    """Builds the items of data sets. The reference's log-probabilities are stored in `folder`."""

    def __init__(self, runner: PassRunner, model: Any, folder: Path, reporter: Reporter, *, resuming: bool) -> None:
        self._runner = runner
        self._model = model
        self._folder = folder
        self._reporter = reporter
        self._resuming = resuming
        self._ranks = runner.planner.ranks

    def training(self, pairs: Sequence[TokenPair]) -> Sequence[BatchItem]:
        """Build the items of the training pairs. Raises StoppedEarly if a stop is requested meanwhile."""
        return self._build(pairs, "training", "training-unrelated", for_evaluation=False)

    def evaluation(self, evaluation_set: EvaluationSet) -> Sequence[BatchItem]:
        """Build the items of an evaluation set. Raises StoppedEarly if a stop is requested meanwhile."""
        names = evaluation_set.reference_name, evaluation_set.unrelated_name
        return self._build(evaluation_set.pairs, *names, for_evaluation=True)

    def _build(
        self, pairs: Sequence[TokenPair], name: str, unrelated_name: str, *, for_evaluation: bool
    ) -> Sequence[BatchItem]:
        objective, config = self._runner.packer.objective, self._runner.packer.config
        # Without a reference there is nothing to compute.
        if not objective.needs_reference:
            return LazyItems(pairs, config)
        examples = [packed_example(pair, config) for pair in pairs]
        references = self._reference(name, examples, for_evaluation=for_evaluation)
        if not objective.needs_divergence:
            return LazyItems(pairs, config, references)
        rows = [pair.row for pair in pairs]
        unrelated = unrelated_examples(examples, config.max_length)
        # [U, 1]: an unrelated example has a single answer.
        unrelated_references = self._reference(unrelated_name, unrelated, for_evaluation=for_evaluation)
        labels = [pair.label for pair in pairs]
        table = zip(examples, rows, references, unrelated, unrelated_references[:, 0], labels, strict=True)
        return [BatchItem(*columns) for columns in table]

    def _reference(self, name: str, examples: Sequence[PackedExample], *, for_evaluation: bool) -> Tensor:
        return reference_logprobs(
            name,
            examples,
            partial(self._logprobs_until_stopped, for_evaluation=for_evaluation),
            self._model,
            self._folder,
            resuming=self._resuming,
            stores=self._ranks.is_first,
        )

    def _logprobs_until_stopped(
        self, examples: Sequence[PackedExample], *, for_evaluation: bool
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield log-probabilities a few passes at a time, and report progress. Raises StoppedEarly."""
        # Repeated pairs of an evaluation set are all computed, so that the batches are those of the policy.
        copies = [[index] for index in range(len(examples))] if for_evaluation else _equal_examples(examples)
        distinct = [examples[indices[0]] for indices in copies]
        groups = self._evaluation_batches(len(distinct)) if for_evaluation else self._groups_of_passes(distinct)
        noted_at, done = time.monotonic(), 0
        for indices in groups:
            # All ranks must leave together, since they compute passes together.
            if self._ranks.broadcast_from_first(self._reporter.should_stop()):
                raise StoppedEarly
            if time.monotonic() - noted_at > _SECONDS_BETWEEN_NOTES:
                noted_at = time.monotonic()
                self._reporter.note(
                    "info", f"Computed the reference's log-probabilities of {done:,} of {len(examples):,} pairs"
                )
            logprobs = self._runner.answer_logprobs([distinct[index] for index in indices])  # [indices, A]
            counts = torch.tensor([len(copies[index]) for index in indices], device=logprobs.device)
            yield [copy for index in indices for copy in copies[index]], logprobs.repeat_interleave(counts, dim=0)
            done += int(counts.sum())

    def _evaluation_batches(self, count: int) -> list[list[int]]:
        """Return the indices of an evaluation set's pairs in the batches of an evaluation.

        With the same passes, the reference equals the untrained policy bit for bit, so that before training every
        reward is exactly 0 and every pair a tie. Other passes would differ by rounding.
        """
        size = self._runner.packer.config.pairs_per_step
        return [list(range(begin, min(begin + size, count))) for begin in range(0, count, size)]

    def _groups_of_passes(self, examples: Sequence[PackedExample]) -> list[list[int]]:
        """Return the indices of examples in groups of whole passes."""
        passes = self._runner.planner.split(examples)
        # A group is the granularity of stops: results of completed groups are stored.
        size = 1 if self._ranks.count == 1 else _PASSES_PER_RANK * self._ranks.count
        groups = (passes[begin : begin + size] for begin in range(0, len(passes), size))
        return [[index for indices in group for index in indices] for group in groups]


def _equal_examples(examples: Sequence[PackedExample]) -> list[list[int]]:
    """Group the indices of examples that have the same texts, in the order of the first of each group.

    The weight of a source repeats its pairs, which have the same log-probabilities. Texts a, b, a give [[0, 2], [1]].
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(digest_of([example]), []).append(index)
    return list(groups.values())
