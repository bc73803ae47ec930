"""The report on all rows of a data set, by the same functions as in a run."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from merlina.data.conversation import Pair, SkippedRow, UnusableRowError
from merlina.data.dataset import read_pairs
from merlina.data.findings.examination import BatchConversion, Converted, examine_batches
from merlina.data.findings.label_balance import label_imbalance, preview_weights
from merlina.data.findings.length_statistics import token_lengths
from merlina.data.findings.row_examiner import RowExaminer
from merlina.data.previews.formatted_rows import PREVIEW_SEED
from merlina.data.readers.data_files import DataFile, file_at
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import describe_encoding
from merlina.data.row_formats.conversion import RowConversion
from merlina.data.row_formats.registry import described
from merlina.data.split import held_out_rows
from merlina.errors import DataError
from merlina.schemas.datasets.config import answers_needed
from merlina.schemas.inspection import DataReport, PairCharacters, PairTokens
from merlina.schemas.operations import DescribeData
from merlina.worker.garbage_collection import rare_collections
from merlina.worker.helper.phases import PHASES
from merlina.worker.helper.previews import sample_builder

_WHOLE_DATA_SET_SECONDS = 24 * 3600.0
# The tokenizer encodes many texts at once several times as fast.
_PAIRS_PER_BATCH = 512
_SECONDS_BETWEEN_REPORTS = 0.2
_Sample = Callable[[], dict[str, Any]]


def describe_data(operation: DescribeData) -> DataReport:
    """Examine all rows of a data set. Raises DataError if none can be used, ModelError."""
    with PHASES.during("Reading the data set", _WHOLE_DATA_SET_SECONDS, DataError), rare_collections():
        config, file, row_limit = operation.config, file_at(operation.file), RowLimit.of_megabytes(operation.max_row_mb)
        show, make_examiner = sample_builder(operation)
        needed = answers_needed(config.training_mode)
        rows = read_pairs(config, file, operation.token, answers_needed=needed, limit=row_limit)
        examiner, lengths = make_examiner(), array("q")
        example: dict[str, Any] | None = None
        for outcome in examine_batches(_counted(rows), examiner, _measuring(show, lengths), size=_PAIRS_PER_BATCH):
            if example is None and not isinstance(outcome, SkippedRow):
                pair, make_sample = outcome
                example = {**make_sample(), "row": pair.number}
        if example is None:
            raise DataError(examiner.why_none_is_usable())
        return _report(operation, file, rows.conversion, examiner, lengths, example)


def _counted(rows: Iterable[Pair | SkippedRow]) -> Iterator[Pair | SkippedRow]:
    """Yield the rows, and report their number from time to time."""
    read, report_at = 0, time.monotonic() + _SECONDS_BETWEEN_REPORTS
    for row in rows:
        read += row.rows
        if time.monotonic() > report_at:
            PHASES.read(read)
            report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        yield row


def _measuring(convert_all: BatchConversion[_Sample], lengths: array[int]) -> BatchConversion[_Sample]:
    """Return the same conversion, which also appends the whole length of each pair that has tokens to `lengths`."""

    def convert_and_measure(pairs: Sequence[Pair]) -> Iterator[Converted[_Sample] | UnusableRowError]:
        for conversion in convert_all(pairs):
            if not isinstance(conversion, UnusableRowError) and conversion[1] is not None:
                lengths.append(conversion[1].untruncated)
            yield conversion

    return convert_and_measure


def _report(
    operation: DescribeData,
    file: DataFile | None,
    conversion: RowConversion,
    examiner: RowExaminer,
    lengths: array[int],
    example: dict[str, Any],
) -> DataReport:
    config = operation.config
    characters, tokens = examiner.mean_characters, examiner.mean_tokens
    assert characters is not None
    held_out = held_out_rows(examiner.numbers, config.test_size, PREVIEW_SEED)
    imbalance = label_imbalance(*examiner.labels, preview_weights(config.training_mode))
    return DataReport(
        detected_format=described(conversion.detected),
        notes=describe_encoding(config.source, file),
        rows=examiner.rows,
        skipped=examiner.skipped,
        pairs=examiner.usable,
        mean_characters=PairCharacters(prompt=characters[0], chosen=characters[1], rejected=characters[2]),
        mean_tokens=PairTokens(prompt=tokens[0], chosen=tokens[1], rejected=tokens[2]) if tokens else None,
        token_lengths=token_lengths(lengths, operation.max_length) if lengths else None,
        findings=[*examiner.findings(held_out, conversion.unused_columns), *filter(None, [imbalance])],
        example=example,
    )
