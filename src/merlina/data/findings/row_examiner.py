"""Detect common defects of preference data, reading each row once.

Findings are warnings: each names a defect, the number of affected rows and the effect on training.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from merlina.data.conversation import Pair, SkippedRow
from merlina.data.digests import pair_digest, prompt_digest
from merlina.data.findings.messages import MESSAGES, OPTIONS
from merlina.data.previews.row_shortening import truncate_name
from merlina.data.rendering.chat_formats import MARKERS
from merlina.schemas.datasets.config import FindingKind, FormatType
from merlina.schemas.datasets.responses import DataFinding

_EXAMPLES = 5
_REASONS_SHOWN = 3
# Length bias: the chosen answer is the longer one, or the shorter one, in at least this fraction of the pairs, and the
# mean lengths differ by at least this ratio.
_ONE_SIDED_FRACTION = 0.8
_LENGTH_RATIO = 1.5
_MIN_PAIRS_FOR_BIAS = 20
_HEADER_LENGTH = 100
_HEADER = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|\[/?INST\]|<start_of_turn>|<\|start\|>|<\|turn>"
    r"|<\|(?:system|user|assistant)\|>|### (?:Instruction|Input|Response|Human|Assistant)",
    re.IGNORECASE,
)


class Lengths(NamedTuple):
    """Numbers of tokens in a pair after truncation, its highest token id, and the numbers of truncated tokens.

    `untruncated` is what `longest` would be without truncation.
    """

    prompt: int
    chosen: int
    rejected: int
    highest_id: int = 0
    cut_prompt: int = 0
    cut_answers: int = 0
    same_after_truncation: bool = False
    untruncated: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def all_parts(self) -> int:
        """Tokens of the prompt and of both answers."""
        return self.prompt + self.chosen + self.rejected


@dataclass
class _Count:
    rows: int = 0
    examples: list[int] = field(default_factory=list)
    latest: int | None = None

    def add(self, number: int, rows: int = 1) -> None:
        """Count a row, once for all of its pairs; merged `rows` have the number of the first."""
        if number == self.latest:
            return
        self.latest = number
        self.rows += rows
        if len(self.examples) < _EXAMPLES:
            self.examples.append(number)


@dataclass
class RowExaminer:
    """Collects the findings on rows; `findings` may be called at any time.

    `markers` are those of the chat format. With `expects_formatted`, markers of any chat format are expected.

    `longest`, `most_tokens` and `highest_id` are maxima over all Lengths, 0 without any; `highest_id_row` is the first
    row with that id.
    """

    markers: Sequence[str] = ()
    expects_formatted: bool = False
    rows: int = 0
    longest: int = 0
    most_tokens: int = 0
    highest_id: int = 0
    highest_id_row: int = 0
    _counts: dict[FindingKind, _Count] = field(default_factory=dict)
    _reasons: dict[FindingKind, list[str]] = field(default_factory=dict)
    # For each pair its row number and digests of its prompt and of the whole, in arrays: there may be millions.
    _numbers: array[int] = field(default_factory=lambda: array("q"))
    _prompts: array[int] = field(default_factory=lambda: array("Q"))
    _wholes: array[int] = field(default_factory=lambda: array("Q"))
    _chosen_longer: int = 0
    _chosen_shorter: int = 0
    _labeled_true: int = 0
    _labeled_false: int = 0
    _characters: tuple[int, int, int] = (0, 0, 0)
    _cut_tokens: tuple[int, int] = (0, 0)
    _tokens: tuple[int, int, int] = (0, 0, 0)
    _tokenized: int = 0

    def __post_init__(self) -> None:
        self._marker = re.compile("|".join(map(re.escape, self.markers))) if self.markers else None

    @property
    def usable(self) -> int:
        """Number of pairs."""
        return len(self._numbers)

    @property
    def numbers(self) -> Sequence[int]:
        """The number of each pair's row, in the order of the pairs."""
        return self._numbers

    @property
    def skipped(self) -> int:
        """Number of rows that are not usable."""
        return sum(self._counts[kind].rows for kind in self._reasons)

    @property
    def mean_tokens(self) -> tuple[float, float, float] | None:
        """Mean tokens of prompt, chosen and rejected answer over the pairs with Lengths; None without any.

        Among unpaired answers, those labeled false count as chosen, too.
        """
        return self._means(self._tokens, self._tokenized)

    @property
    def mean_characters(self) -> tuple[float, float, float] | None:
        """Mean characters of the messages of prompt, chosen and rejected answer over all pairs, as `mean_tokens`."""
        return self._means(self._characters, self.usable)

    @property
    def labels(self) -> tuple[int, int]:
        """The numbers of pairs with a chosen answer alone, and with a rejected one alone."""
        return self._labeled_true, self._labeled_false

    def add_skipped(self, row: SkippedRow) -> None:
        """Add a row that is not usable."""
        self.rows += row.rows
        kind: FindingKind = row.kind
        self._count(kind).add(row.number, max(row.rows, 1))
        reasons = self._reasons.setdefault(kind, [])
        if len(reasons) < _EXAMPLES:
            reasons.append(f"row {row.number}: {row.reason}")

    def reason_to_skip(self) -> str | None:
        """Return the first reason for which a row was skipped, with the row's number."""
        return next((reasons[0] for reasons in self._reasons.values()), None)

    def why_none_is_usable(self) -> str:
        """Return the reasons of the first rows."""
        if self.rows == 0:
            return "The data set has no rows"
        reasons = [reason for reasons in self._reasons.values() for reason in reasons]
        return f"None of the data set's {self.rows} rows can be used: {'; '.join(reasons[:_REASONS_SHOWN])}"

    def add_pair(self, pair: Pair, lengths: Lengths | None = None, finding_kinds: Iterable[FindingKind] = ()) -> None:
        """Add a pair, with its `lengths` if it was tokenized and the `finding_kinds` of its rendering."""
        self.rows += pair.rows
        for kind in (*pair.finding_kinds, *finding_kinds):
            self._count(kind).add(pair.number)
        if pair.has_identical_answers:
            self._count("identical_answers").add(pair.number)
        self._remember(pair)
        self._measure_messages(pair)
        self._check_markers(pair)
        if lengths is not None:
            self._measure_tokens(pair, lengths)

    def kinds_of(self, number: int) -> list[FindingKind]:
        """Return the kinds of findings on the row that was added last, other than those that compare rows."""
        return [kind for kind, count in self._counts.items() if count.latest == number]

    def findings(self, held_out: Iterable[int], unused_columns: Sequence[str] = ()) -> list[DataFinding]:
        """Return all findings, the most serious first.

        `held_out` contains the row numbers of the held-out pairs. `unused_columns` have text that is not trained on.
        """
        counts = {**self._counts, **self._counts_of_all(np.fromiter(held_out, np.int64))}
        if unused_columns:
            counts["unused_columns"] = _Count(self.rows)
        found = [self._finding(kind, counts[kind], unused_columns) for kind in MESSAGES if kind in counts]
        bias = self._length_bias()
        return [*found, bias] if bias else found

    def leak_from(self, training: RowExaminer) -> DataFinding | None:
        """Return a finding if these pairs, which are evaluated on, share prompts with pairs of the training data."""
        shared = int(np.isin(np.array(self._prompts), np.array(training._prompts)).sum())
        if not shared:
            return None
        message = (
            f"{shared:,} of {self.usable:,} pairs to evaluate on share their prompt with a pair of the training data: "
            "the evaluation will be too optimistic"
        )
        return DataFinding(kind="evaluation_leak", count=shared, rows=[], message=message)

    def _count(self, kind: FindingKind) -> _Count:
        return self._counts.setdefault(kind, _Count())

    def _means(self, totals: tuple[int, int, int], pairs: int) -> tuple[float, float, float] | None:
        if pairs == 0:
            return None
        prompt, chosen, rejected = totals
        if self._labeled_false:
            chosen, rejected = chosen + rejected, 0
        return prompt / pairs, chosen / pairs, rejected / pairs

    def _remember(self, pair: Pair) -> None:
        prompt = prompt_digest(pair)
        self._numbers.append(pair.number)
        self._prompts.append(prompt)
        self._wholes.append(pair_digest(pair, prompt))

    def _check_markers(self, pair: Pair) -> None:
        if self.expects_formatted:
            return
        if _is_formatted(pair):
            self._count("already_formatted").add(pair.number)
        elif self._marker and any(map(self._marker.search, [turn.content for turn in pair.turns])):
            self._count("markers_in_text").add(pair.number)

    def _measure_messages(self, pair: Pair) -> None:
        prompt = sum([len(turn.content) for turn in pair.prompt])
        chosen = 0 if pair.chosen is None else pair.chosen.num_characters
        rejected = 0 if pair.rejected is None else pair.rejected.num_characters
        totals = self._characters
        self._characters = (totals[0] + prompt, totals[1] + chosen, totals[2] + rejected)
        if pair.chosen is None or pair.rejected is None:
            self._labeled_true += pair.rejected is None
            self._labeled_false += pair.chosen is None
            return
        self._chosen_longer += chosen > rejected
        self._chosen_shorter += chosen < rejected

    def _measure_tokens(self, pair: Pair, lengths: Lengths) -> None:
        self.longest = max(self.longest, lengths.longest)
        self.most_tokens = max(self.most_tokens, lengths.all_parts)
        if lengths.highest_id > self.highest_id:
            self.highest_id, self.highest_id_row = lengths.highest_id, pair.number
        prompt, chosen, rejected = self._tokens
        self._tokens = (prompt + lengths.prompt, chosen + lengths.chosen, rejected + lengths.rejected)
        self._tokenized += 1
        if lengths.cut_prompt or lengths.cut_answers:
            self._count("over_max_length").add(pair.number)
            prompts, answers = self._cut_tokens
            self._cut_tokens = (prompts + lengths.cut_prompt, answers + lengths.cut_answers)
        if lengths.same_after_truncation:
            self._count("same_after_truncation").add(pair.number)

    def _counts_of_all(self, held_out: NDArray[np.int64]) -> dict[FindingKind, _Count]:
        """Count what only all pairs together show: repeated pairs, and held-out prompts that are trained on."""
        numbers, prompts, wholes = (np.array(column) for column in (self._numbers, self._prompts, self._wholes))
        is_repeated = np.ones(len(wholes), dtype=bool)
        is_repeated[np.unique(wholes, return_index=True)[1]] = False
        is_held_out = np.isin(numbers, held_out)
        is_leaked = is_held_out & np.isin(prompts, prompts[~is_held_out])
        found: dict[FindingKind, NDArray[np.int64]] = {
            # A row may have several pairs.
            "duplicates": np.unique(numbers[is_repeated]),
            "evaluation_leak": np.unique(numbers[is_leaked]),
        }
        return {kind: _Count(len(rows), rows[:_EXAMPLES].tolist()) for kind, rows in found.items() if len(rows)}

    def _length_bias(self) -> DataFinding | None:
        pairs = self.usable
        if pairs < _MIN_PAIRS_FOR_BIAS:
            return None
        _, chosen, rejected = (total / pairs for total in self._characters)
        ratio = chosen / max(rejected, 1)
        longer = self._chosen_longer / pairs >= _ONE_SIDED_FRACTION
        shorter = self._chosen_shorter / pairs >= _ONE_SIDED_FRACTION
        if not (longer and ratio >= _LENGTH_RATIO) and not (shorter and ratio <= 1 / _LENGTH_RATIO):
            return None
        side, count = ("longer", self._chosen_longer) if longer else ("shorter", self._chosen_shorter)
        message = (
            f"the chosen answer is the {side} one in {count / pairs:.0%} of the pairs ({chosen:,.0f} characters "
            f"against {rejected:,.0f} on average): the model may learn length rather than quality"
        )
        return DataFinding(kind="length_bias", count=count, rows=[], message=message)

    def _finding(self, kind: FindingKind, count: _Count, unused_columns: Sequence[str]) -> DataFinding:
        prompts, answers = self._cut_tokens
        message = MESSAGES[kind].format(
            count=f"{count.rows:,}",
            of=f"{self.rows:,}",
            reasons="; ".join(self._reasons.get(kind, [])),
            prompts=f"{prompts:,}",
            answers=f"{answers:,}",
            columns=", ".join(map(truncate_name, unused_columns)),
        )
        return DataFinding(kind=kind, count=count.rows, rows=count.examples, message=message, option=OPTIONS.get(kind))


def _is_formatted(pair: Pair) -> bool:
    """Return whether the prompt begins and ends with the headers of a chat format."""
    begins, ends = pair.prompt[0].content[:_HEADER_LENGTH], pair.prompt[-1].content[-_HEADER_LENGTH:]
    return bool(_HEADER.search(begins) and _HEADER.search(ends))


def row_examiner(format_type: FormatType, special_tokens: Sequence[str] = ()) -> RowExaminer:
    """Return the examiner of rows for a chat format; `tokenizer` uses the `special_tokens` as markers."""
    markers = MARKERS.get(format_type, special_tokens)
    return RowExaminer(markers, expects_formatted=format_type == "raw")
