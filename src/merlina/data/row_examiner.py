"""Detect common defects of preference data in a single pass over the rows.

Findings are warnings: each names a defect, the number of affected rows and the effect on training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from merlina.data.conversation import Pair
from merlina.data.dataset import SkippedRow
from merlina.data.finding_messages import MESSAGES
from merlina.schemas.datasets import DataFinding, FindingKind

_EXAMPLES = 5
# Length bias: at least this fraction of the answers on one side is longer, by at least this ratio on average.
_ONE_SIDED_FRACTION = 0.8
_LENGTH_RATIO = 1.5
_MIN_PAIRS_FOR_BIAS = 20
_HEADER_LENGTH = 100
_HEADER = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|\[/?INST\]|<start_of_turn>|<\|start\|>|<\|turn>"
    r"|<\|(?:system|user|assistant)\|>|### (?:Instruction|Input|Response|Human|Assistant)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens in a pair after truncation, its highest token id, and the numbers of truncated tokens."""

    prompt: int
    chosen: int
    rejected: int
    highest_id: int = 0
    cut_prompt: int = 0
    cut_answers: int = 0
    same_after_truncation: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def all_parts(self) -> int:
        return self.prompt + self.chosen + self.rejected


@dataclass
class _Count:
    rows: int = 0
    examples: list[int] = field(default_factory=list)

    def add(self, number: int) -> None:
        self.rows += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(number)


@dataclass
class RowExaminer:
    """Collector of findings; `findings` may be called at any time.

    `markers` are those of the chat format. `expects_formatted` rows have a format already, with whichever markers.
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
    _seen: set[bytes] = field(default_factory=set)
    _prompts: list[tuple[int, bytes]] = field(default_factory=list)
    _chosen_longer: int = 0
    _chosen_shorter: int = 0
    _characters: tuple[int, int] = (0, 0)
    _cut_tokens: tuple[int, int] = (0, 0)
    _tokens: tuple[int, int, int] = (0, 0, 0)
    _tokenized: int = 0

    @property
    def usable(self) -> int:
        return len(self._prompts)

    @property
    def mean_tokens(self) -> tuple[float, float, float] | None:
        """Mean tokens of prompt, chosen and rejected answer over the pairs with Lengths; None without any."""
        if self._tokenized == 0:
            return None
        prompt, chosen, rejected = self._tokens
        return prompt / self._tokenized, chosen / self._tokenized, rejected / self._tokenized

    def add_skipped(self, row: SkippedRow) -> None:
        """Add a row that is not usable."""
        self.rows += 1
        kind: FindingKind = row.kind
        self._count(kind).add(row.number)
        reasons = self._reasons.setdefault(kind, [])
        if len(reasons) < _EXAMPLES:
            reasons.append(f"row {row.number}: {row.reason}")

    def reason_to_skip(self) -> str | None:
        """Return the first reason for which a row was skipped, with the row's number."""
        return next((reasons[0] for reasons in self._reasons.values()), None)

    def add_pair(self, pair: Pair, lengths: Lengths | None = None, remarks: Iterable[FindingKind] = ()) -> None:
        """Add a pair, with its `lengths` if it was tokenized and the `remarks` of its formatting."""
        self.rows += 1
        for kind in (*pair.remarks, *remarks):
            self._count(kind).add(pair.number)
        if len({turn.content.strip() for turn in pair.answers}) < len(pair.answers):
            self._count("identical_answers").add(pair.number)
        self._check_duplicates(pair)
        self._measure_answers(pair)
        self._check_markers(pair)
        if lengths is not None:
            self._measure_tokens(pair, lengths)

    def findings(self, held_out: Iterable[int]) -> list[DataFinding]:
        """Return all findings, the most serious first. `held_out` contains the numbers of the held-out pairs."""
        counts = dict(self._counts)
        if (leaked := self._leaked(set(held_out))).rows:
            counts["evaluation_leak"] = leaked
        found = [self._finding(kind, counts[kind]) for kind in MESSAGES if kind in counts]
        bias = self._length_bias()
        return [*found, bias] if bias else found

    def _count(self, kind: FindingKind) -> _Count:
        return self._counts.setdefault(kind, _Count())

    def _check_duplicates(self, pair: Pair) -> None:
        prompt = _digest([part for turn in pair.prompt for part in (turn.role, turn.content.strip())])
        whole = _digest([prompt.hex(), *(turn.content.strip() for turn in pair.answers)])
        if whole in self._seen:
            self._count("duplicates").add(pair.number)
        self._seen.add(whole)
        self._prompts.append((pair.number, prompt))

    def _check_markers(self, pair: Pair) -> None:
        if self.expects_formatted:
            return
        if _is_formatted(pair):
            self._count("already_formatted").add(pair.number)
        elif any(marker in turn.content for turn in (*pair.answers, *pair.prompt) for marker in self.markers):
            self._count("markers_in_text").add(pair.number)

    def _measure_answers(self, pair: Pair) -> None:
        if pair.rejected is None:
            return
        chosen, rejected = len(pair.chosen.content), len(pair.rejected.content)
        self._chosen_longer += chosen > rejected
        self._chosen_shorter += chosen < rejected
        self._characters = (self._characters[0] + chosen, self._characters[1] + rejected)

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

    def _leaked(self, held_out: set[int]) -> _Count:
        """Count held-out pairs that share their prompt with a training pair."""
        trained = {prompt for number, prompt in self._prompts if number not in held_out}
        leaked = _Count()
        for number, prompt in self._prompts:
            if number in held_out and prompt in trained:
                leaked.add(number)
        return leaked

    def _length_bias(self) -> DataFinding | None:
        pairs = self.usable
        if pairs < _MIN_PAIRS_FOR_BIAS:
            return None
        chosen, rejected = (total / pairs for total in self._characters)
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

    def _finding(self, kind: FindingKind, count: _Count) -> DataFinding:
        prompts, answers = self._cut_tokens
        message = MESSAGES[kind].format(
            count=f"{count.rows:,}",
            of=f"{self.rows:,}",
            reasons="; ".join(self._reasons.get(kind, [])),
            prompts=f"{prompts:,}",
            answers=f"{answers:,}",
        )
        return DataFinding(kind=kind, count=count.rows, rows=count.examples, message=message)


def _digest(parts: Sequence[str]) -> bytes:
    digest = blake2b(digest_size=12)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.digest()


def _is_formatted(pair: Pair) -> bool:
    """Return whether the prompt begins and ends with the headers of a chat format."""
    begins, ends = pair.prompt[0].content[:_HEADER_LENGTH], pair.prompt[-1].content[-_HEADER_LENGTH:]
    return bool(_HEADER.search(begins) and _HEADER.search(ends))
