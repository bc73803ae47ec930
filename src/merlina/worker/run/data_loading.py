"""Read, examine and encode each row of a run once, holding the text of a few hundred at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from merlina.data.conversation import Pair, SkippedRow, UnusableRowError
from merlina.data.dataset import ChainedRows, unused_columns
from merlina.data.findings.examination import Converted, examine_batches
from merlina.data.findings.label_balance import label_imbalance, label_weights
from merlina.data.findings.messages import TRAINING_ONLY
from merlina.data.findings.row_examiner import RowExaminer
from merlina.data.fingerprint import FingerprintBuilder
from merlina.data.split import held_out_rows
from merlina.errors import DataError
from merlina.schemas.datasets.config import DatasetPart
from merlina.schemas.datasets.responses import DataFinding
from merlina.schemas.inspection import Fingerprint
from merlina.schemas.training.config import TrainingConfig
from merlina.training.evaluation_sets import HELD_OUT, EvaluationSet
from merlina.training.models.token_store import TokenStore
from merlina.training.models.tokens import TokenPair
from merlina.training.reporter import Reporter, StoppedEarly
from merlina.worker.encoding import EncodedPair, PairEncoder
from merlina.worker.garbage_collection import rare_collections
from merlina.worker.run.run_sources import FIRST, RunSources
from merlina.worker.run.token_cache import EncodedRows, TokenCache
from merlina.worker.run.training_order import training_order

# The tokenizer encodes many texts at once, in the background. A stop is honored between two batches.
_PAIRS_PER_BATCH = 512
_SECONDS_BETWEEN_NOTES = 10.0


class _Split(NamedTuple):
    """The indices of the held-out pairs, and of the pairs to train on in the order of an epoch."""

    held_out: NDArray[np.int64]
    order: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingData:
    """Token ids of the pairs to train on, in order, and the sets to evaluate on, none of which is empty.

    Weights of sources repeat pairs; `distinct` of them are different.
    """

    training: Sequence[TokenPair]
    evaluation: tuple[EvaluationSet, ...]
    distinct: int

    @property
    def holds_out(self) -> bool:
        """Whether no evaluation set is a data set of its own: true for held-out pairs alone, and for none."""
        return all(each.name == HELD_OUT for each in self.evaluation)

    @property
    def has_labels(self) -> bool:
        """Whether the pairs have one answer each."""
        return bool(self.training) and self.training[0].label is not None

    @property
    def num_evaluated(self) -> int:
        """The number of pairs in all sets to evaluate on."""
        return sum(len(each.pairs) for each in self.evaluation)


class DataLoading:
    """Loads the rows of one run as token ids; `vocabulary_size` is the number of token ids of the model.

    Token ids in the `cache`, of an earlier attempt or of the first rank, are reused if still valid. Otherwise all rows
    are encoded, and with `writes_cache` (the first rank) the ids are stored in the cache.
    """

    def __init__(
        self,
        config: TrainingConfig,
        encoder: PairEncoder,
        vocabulary_size: int,
        reporter: Reporter,
        cache: TokenCache,
        *,
        writes_cache: bool,
    ) -> None:
        self._config = config
        self._encoder = encoder
        self._vocabulary_size = vocabulary_size
        self._reporter = reporter
        self._cache = cache
        self._writes_cache = writes_cache
        self._store = TokenStore()

    def load(self, sources: RunSources) -> tuple[TrainingData, Fingerprint]:
        """Return the usable pairs, and the fingerprint of all rows. Reports findings.

        Raises DataError if no row is usable or a row has a token that the model does not have, and StoppedEarly if a
        stop is requested meanwhile.
        """
        # Before reading: a file that is replaced meanwhile must appear replaced.
        stamps = sources.stamps()
        files = Fingerprint(
            rows=0,
            held_out=0,
            blocks=(),
            file=stamps.pop(FIRST, None),
            files=stamps,
            conversion_rules=sources.conversion_rules,
        )
        with rare_collections():
            rows, split = (self._reopen(files) if sources.are_files else None) or self._read_all(sources, files)
        return self._data(rows, split), rows.fingerprint

    def _reopen(self, files: Fingerprint) -> tuple[EncodedRows, _Split] | None:
        """Use the token ids that an earlier attempt cached; None if there are none, or none that can be used."""
        found = self._cache.reopen(files)
        if isinstance(found, tuple):
            self._store, rows = found
            self._reporter.note("info", f"{len(self._store):,} pairs were encoded by an earlier attempt")
            return rows, self._split(self._store.rows[: rows.training], (0, *rows.fingerprint.begins))
        if found is not None:
            self._reporter.note("info", f"All rows are encoded again, since {found}")
        return None

    def _read_all(self, sources: RunSources, files: Fingerprint) -> tuple[EncodedRows, _Split]:
        """Encode the rows of all sources, and cache them. Reports findings.

        `files` has the stamps of the sources and the version of the rules.
        """
        if not self._writes_cache:
            return self._encode_sources(sources, files)
        self._store = self._cache.new_store()
        try:
            encoded, split = self._encode_sources(sources, files)
            if sources.are_files:
                self._cache.write(self._store, encoded)
        except BaseException:
            self._cache.discard()
            raise
        return encoded, split

    def _encode_sources(self, sources: RunSources, files: Fingerprint) -> tuple[EncodedRows, _Split]:
        digest = FingerprintBuilder()
        rows, evaluated = sources.open()
        examiner = self._read(rows, digest)
        numbers = self._store.rows
        split = self._split(numbers, rows.begins)
        held_out = np.unique(numbers[split.held_out])
        findings = examiner.findings(held_out, unused_columns(rows.conversions))
        self._report_findings(examiner, findings, self._store.labels(split.order))
        if len(sources.training_parts) > 1:
            self._check_sources(sources.training_parts, rows.begins, numbers)
            self._report_numbering(sources.training_parts, rows.begins)
        if not len(split.order):
            raise DataError(
                "No row can be used in this chat format "
                f"({examiner.reason_to_skip() or 'no pair is left to train on'}); "
                "correct the rows, or choose another format, such as chatml"
            )
        ranges, digests = {}, {}
        for part, its_rows in zip(sources.eval_parts, evaluated, strict=True):
            ranges[part.name], digests[part.name] = self._read_evaluation(part, its_rows, examiner)
        found = digest.finish(self._config.dataset.test_size, digests)
        read_from = {
            "file": files.file,
            "files": files.files,
            "begins": tuple(rows.begins[1:]),
            "conversion_rules": files.conversion_rules,
        }
        encoded = EncodedRows(training=len(numbers), evaluation=ranges, fingerprint=found.model_copy(update=read_from))
        return encoded, split

    def _split(self, numbers: NDArray[np.int64], begins: Sequence[int]) -> _Split:
        held_out = held_out_rows(numbers.tolist(), self._config.dataset.test_size, self._config.seed)
        is_held_out = np.isin(numbers, list(held_out))
        return _Split(np.flatnonzero(is_held_out), training_order(self._config, numbers, ~is_held_out, begins))

    def _data(self, rows: EncodedRows, split: _Split) -> TrainingData:
        """Return the pairs of the store. Raises DataError if the best model cannot be selected by them."""
        indices_of = {HELD_OUT: split.held_out} if len(split.held_out) else {}
        indices_of |= {name: np.arange(first, end) for name, (first, end) in rows.evaluation.items()}
        evaluation = tuple(EvaluationSet(name, self._store.select(indices)) for name, indices in indices_of.items())
        data = TrainingData(self._store.select(split.order), evaluation, len(np.unique(split.order)))
        self._check_margin(data)
        return data

    def _read(self, rows: ChainedRows, digest: FingerprintBuilder, error_prefix: str = "") -> RowExaminer:
        """Add the pairs of all rows to the store, and return what was found.

        Raises DataError, which begins with `error_prefix`, if none is usable.
        """
        examiner = self._encoder.row_examiner()
        counted = self._counted(rows, digest)
        for outcome in examine_batches(counted, examiner, self._encode, size=_PAIRS_PER_BATCH):
            if not isinstance(outcome, SkippedRow):
                self._store.add(outcome[1])
        if digest.rows == 0:
            raise DataError(f"{error_prefix}{examiner.why_none_is_usable()}")
        return examiner

    def _read_evaluation(
        self, part: DatasetPart, rows: ChainedRows, training: RowExaminer
    ) -> tuple[tuple[int, int], str]:
        """Return the range of the pairs of a data set to evaluate on, and a digest of its rows. Raises DataError."""
        before, digest = len(self._store), FingerprintBuilder()
        examiner = self._read(rows, digest, f"dataset.{part.location}: ")
        if len(self._store) == before:
            raise DataError(f"dataset.{part.location}: no row can be used ({examiner.reason_to_skip()})")
        for finding in examiner.findings([], unused_columns(rows.conversions)):
            if finding.kind not in TRAINING_ONLY:
                self._reporter.note("warning", f"dataset.{part.location}: {finding.message}")
        if leak := examiner.leak_from(training):
            self._reporter.note("warning", f"dataset.{part.location}: {leak.message}")
        return (before, len(self._store)), digest.digest()

    @staticmethod
    def _check_sources(parts: Sequence[DatasetPart], begins: Sequence[int], numbers: NDArray[np.int64]) -> None:
        """Raise DataError if a source has no pair: a run on the others alone is not what was asked for."""
        counts = np.bincount(np.searchsorted(begins, numbers, side="left") - 1, minlength=len(parts))
        for part, count in zip(parts, counts.tolist(), strict=True):
            if count == 0:
                raise DataError(
                    f"dataset.{part.location}: no row of {part.name} can be used; correct it or leave it out"
                )

    def _report_numbering(self, parts: Sequence[DatasetPart], begins: Sequence[int]) -> None:
        """Report which rows are those of which source."""
        firsts = (f"{begin + 1:,} ({part.name})" for part, begin in zip(parts, begins, strict=True))
        self._reporter.note("info", f"Rows are numbered through all sources, which begin at {', '.join(firsts)}")

    def _check_margin(self, data: TrainingData) -> None:
        """Raise DataError if the best model cannot be selected by a margin between both labels."""
        if self._config.load_best_at_end != "eval_reward_margin":
            return
        labels = {pair.label for each in data.evaluation for pair in each.pairs}
        if len(labels) == 1 and None not in labels:
            raise DataError(
                f"All {data.num_evaluated:,} answers to evaluate on are labeled {str(labels.pop()).lower()}, so that "
                "there is no eval_reward_margin for load_best_at_end; raise dataset.test_size, or use eval_loss"
            )

    def _counted(self, rows: Iterable[Pair | SkippedRow], digest: FingerprintBuilder) -> Iterator[Pair | SkippedRow]:
        """Yield the rows, and check for a stop between them, since there may be millions."""
        noted_at = time.monotonic()
        for count, row in enumerate(rows):
            if count % _PAIRS_PER_BATCH == 0:
                if self._reporter.should_stop():
                    raise StoppedEarly
                if time.monotonic() - noted_at > _SECONDS_BETWEEN_NOTES:
                    noted_at = time.monotonic()
                    self._reporter.note("info", f"{count:,} rows have been read and encoded so far")
            if isinstance(row, Pair):
                digest.add(row)
            yield row

    def _encode(self, pairs: Sequence[Pair]) -> Iterator[Converted[TokenPair] | UnusableRowError]:
        return self._converted(pairs, self._encoder.encode_all(pairs))

    def _converted(
        self, pairs: Sequence[Pair], all_encoded: Iterator[EncodedPair | UnusableRowError]
    ) -> Iterator[Converted[TokenPair] | UnusableRowError]:
        for pair, encoded in zip(pairs, all_encoded, strict=True):
            if isinstance(encoded, UnusableRowError):
                yield encoded
            else:
                self._refuse_unknown_ids(pair, encoded)
                yield encoded.tokens, encoded.lengths, encoded.text.finding_kinds

    def _refuse_unknown_ids(self, pair: Pair, encoded: EncodedPair) -> None:
        if (token := encoded.id_outside(self._vocabulary_size)) is not None:
            raise DataError(
                f"Row {pair.number:,} has the token id {token:,} ({self._encoder.token_text(token)!r}), but the model "
                f"has the ids 0 to {self._vocabulary_size - 1:,}. The tokenizer of {self._config.base_model} belongs "
                "to another model, or has tokens that were added after the model was saved"
            )

    def _report_findings(self, examiner: RowExaminer, findings: Sequence[DataFinding], labels: tuple[int, int]) -> None:
        """Report the findings on all rows. `labels` has the numbers of answers labeled true and false in an epoch."""
        if examiner.reason_to_skip() is None:
            self._reporter.note("info", f"{examiner.rows} rows read, all of them usable")
        imbalance = label_imbalance(*labels, label_weights(self._config))
        for finding in (*findings, *filter(None, [imbalance])):
            self._reporter.note("warning", finding.message)
