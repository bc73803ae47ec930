"""Read, examine and encode all rows of a run in one pass, holding the text of a few hundred at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merlina.data.conversation import Pair, SkippedRow, UnusableRowError
from merlina.data.dataset import PairRows, held_out_rows
from merlina.data.examination import Converted, examine_batches
from merlina.data.fingerprint import FingerprintBuilder
from merlina.data.label_balance import label_weights
from merlina.data.row_examiner import RowExaminer
from merlina.errors import DataError
from merlina.schemas.inspection import Fingerprint
from merlina.schemas.training import TrainingConfig
from merlina.training.models.token_store import TokenStore
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


class DataLoading:
    """Loads the rows of one run as token ids; `vocabulary_size` is the number of token ids of the model."""

    def __init__(self, config: TrainingConfig, encoder: PairEncoder, vocabulary_size: int, reporter: Reporter) -> None:
        self._config = config
        self._encoder = encoder
        self._vocabulary_size = vocabulary_size
        self._reporter = reporter
        self._store = TokenStore()

    def load(self, rows: PairRows, file: Path | None) -> tuple[TrainingData, Fingerprint]:
        """Return the usable pairs, and the fingerprint of all rows. Reports findings.

        Raises DataError if no row is usable or has a token that the model does not have, StoppedEarly on a stop.
        """
        examiner, digest = self._encoder.row_examiner(rows.conversion.unused_columns), FingerprintBuilder(file)
        counted = self._counted(rows, digest)
        for outcome in examine_batches(counted, examiner, self._encode, size=_PAIRS_PER_BATCH):
            if not isinstance(outcome, SkippedRow):
                self._store.add(outcome[1])
        if digest.rows == 0:
            raise DataError(examiner.why_none_is_usable())
        numbers = self._store.rows
        held_out = held_out_rows(numbers.tolist(), self._config.dataset.test_size, self._config.seed)
        self._report_findings(examiner, held_out)
        is_held_out = np.isin(numbers, list(held_out))
        data = TrainingData(self._store.select(~is_held_out), self._store.select(is_held_out))
        if not data.training:
            raise DataError(
                "No row can be used in this chat format "
                f"({examiner.reason_to_skip() or 'no pair is left to train on'}); "
                "correct the rows, or choose another format, such as chatml"
            )
        self._check_margin(data.held_out)
        return data, digest.finish(self._config.dataset.test_size)

    def _check_margin(self, held_out: Sequence[TokenPair]) -> None:
        """Raise DataError if the best model cannot be selected by a margin between both labels."""
        if self._config.load_best_at_end != "eval_reward_margin":
            return
        labels = {pair.label for pair in held_out}
        if len(labels) == 1 and None not in labels:
            raise DataError(
                f"All {len(held_out):,} held-out answers are labeled {str(labels.pop()).lower()}, so that there is no "
                "eval_reward_margin for load_best_at_end; raise dataset.test_size, or use eval_loss"
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
                    self._reporter.note("info", f"{count:,} pairs have been read and encoded so far")
            if isinstance(row, Pair):
                digest.add(row)
            yield row

    def _encode(self, pairs: Sequence[Pair]) -> Iterator[Converted[TokenPair] | UnusableRowError]:
        for pair, encoded in zip(pairs, self._encoder.encode_all(pairs), strict=True):
            if isinstance(encoded, UnusableRowError):
                yield encoded
            else:
                self._refuse_unknown_ids(pair, encoded)
                yield encoded.tokens, encoded.lengths, encoded.text.remarks

    def _refuse_unknown_ids(self, pair: Pair, encoded: EncodedPair) -> None:
        if (token := encoded.id_outside(self._vocabulary_size)) is not None:
            raise DataError(
                f"Row {pair.number:,} has the token id {token:,} ({self._encoder.token_text(token)!r}), but the model "
                f"has the ids 0 to {self._vocabulary_size - 1:,}. The tokenizer of {self._config.base_model} belongs "
                "to another model, or has tokens that were added after the model was saved"
            )

    def _report_findings(self, examiner: RowExaminer, held_out: Iterable[int]) -> None:
        if examiner.reason_to_skip() is None:
            self._reporter.note("info", f"{examiner.rows} rows read, all of them usable")
        for finding in examiner.findings(held_out, label_weights(self._config)):
            self._reporter.note("warning", finding.message)
