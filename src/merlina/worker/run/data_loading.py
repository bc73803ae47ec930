"""Read, examine and encode all rows of a run in one pass, holding the text of a few hundred at a time."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from merlina.data.conversation import Pair, UnusableRowError
from merlina.data.dataset import SkippedRow, split_pairs
from merlina.data.examination import Converted, examine_batches
from merlina.data.fingerprint import FingerprintBuilder
from merlina.data.row_examiner import RowExaminer
from merlina.errors import DataError
from merlina.schemas.inspection import Fingerprint
from merlina.schemas.training import TrainingConfig
from merlina.training.models.token_store import StoredPairs, TokenStore
from merlina.training.models.tokens import TokenPair
from merlina.training.reporter import Reporter, StoppedEarly
from merlina.worker.encoding import EncodedPair, PairEncoder

# The tokenizer encodes many texts at once in several threads. A stop is honored between two batches.
_PAIRS_PER_BATCH = 512
_SECONDS_BETWEEN_NOTES = 10.0


@dataclass(frozen=True)
class TrainingData:
    """Token ids of the pairs that are trained on and of the held-out pairs."""

    training: Sequence[TokenPair]
    held_out: Sequence[TokenPair]


@dataclass
class DataLoading:
    """The rows of a run on their way to token ids; `vocabulary_size` is the number of token ids of the model."""

    config: TrainingConfig
    encoder: PairEncoder
    vocabulary_size: int
    reporter: Reporter
    _store: TokenStore = field(default_factory=TokenStore)
    _encoded: array[int] = field(default_factory=lambda: array("q"))  # which of all pairs are in the store
    _pairs: int = 0

    def load(self, rows: Iterable[Pair | SkippedRow], file: Path | None) -> tuple[TrainingData, Fingerprint]:
        """Return the usable pairs, and the fingerprint of all rows. Reports findings.

        Raises DataError if no row is usable or has a token that the model does not have, StoppedEarly on a stop.
        """
        examiner, digest = self.encoder.row_examiner(), FingerprintBuilder(file)
        counted = self._counted(rows, digest)
        for outcome in examine_batches(counted, examiner, self._encode, size=_PAIRS_PER_BATCH):
            if not isinstance(outcome, SkippedRow):
                self._store.add(outcome[1])
        if digest.rows == 0:
            raise DataError(examiner.why_none_is_usable())
        training, held_out = self._split()
        self._report_findings(examiner, held_out)
        if not training:
            raise DataError(
                "No row can be used in this chat format "
                f"({examiner.reason_to_skip() or 'no pair is left to train on'}); "
                "correct the rows, or choose another format, such as chatml"
            )
        return TrainingData(training, held_out), digest.finish(self.config.dataset.test_size)

    def _counted(self, rows: Iterable[Pair | SkippedRow], digest: FingerprintBuilder) -> Iterator[Pair | SkippedRow]:
        noted_at = time.monotonic()
        for number, row in enumerate(rows):
            if number % _PAIRS_PER_BATCH == 0:
                if self.reporter.should_stop():
                    raise StoppedEarly
                if time.monotonic() - noted_at > _SECONDS_BETWEEN_NOTES:
                    noted_at = time.monotonic()
                    self.reporter.note("info", f"{number:,} rows are read and encoded so far")
            if isinstance(row, Pair):
                digest.add(row)
            yield row

    def _encode(self, pairs: Sequence[Pair]) -> Iterator[Converted[TokenPair] | UnusableRowError]:
        for pair, encoded in zip(pairs, self.encoder.encode_all(pairs), strict=True):
            place = self._pairs
            self._pairs += 1
            if isinstance(encoded, UnusableRowError):
                yield encoded
                continue
            self._refuse_unknown_ids(pair, encoded)
            self._encoded.append(place)
            yield encoded.tokens, encoded.lengths, encoded.text.remarks

    def _refuse_unknown_ids(self, pair: Pair, encoded: EncodedPair) -> None:
        if (token := encoded.id_outside(self.vocabulary_size)) is not None:
            raise DataError(
                f"Row {pair.number:,} has the token id {token:,} ({self.encoder.token_text(token)!r}), but the model "
                f"has the ids 0 to {self.vocabulary_size - 1:,}. The tokenizer of {self.config.base_model} belongs to "
                "another model, or has tokens that were added after the model was saved"
            )

    def _split(self) -> tuple[StoredPairs, StoredPairs]:
        """Split all pairs, and leave out those that could not be encoded."""
        training, held_out = split_pairs(range(self._pairs), self.config.dataset.test_size, self.config.seed)
        # The place in the store of each pair, -1 for those that are not there.
        places = np.full(self._pairs, -1)
        places[np.array(self._encoded)] = np.arange(len(self._encoded))
        stored = [places[np.array(part, dtype=np.int64)] for part in (training, held_out)]
        of_training, of_held_out = (self._store.select(part[part >= 0]) for part in stored)
        return of_training, of_held_out

    def _report_findings(self, examiner: RowExaminer, held_out: StoredPairs) -> None:
        if examiner.usable == examiner.rows:
            self.reporter.note("info", f"{examiner.rows} rows read, all of them usable")
        for finding in examiner.findings(held_out.rows):
            self.reporter.note("warning", finding.message)
