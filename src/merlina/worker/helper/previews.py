"""Operations for previews that may need the Hub's client or a tokenizer, by the same functions as in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from merlina.data.conversation import Pair, UnusableRowError
from merlina.data.findings.examination import Converted
from merlina.data.findings.row_examiner import RowExaminer, row_examiner
from merlina.data.previews.formatted_rows import RowSelection, SampleBuilder, text_sample_builder
from merlina.data.previews.formatted_rows import preview_formatted as preview_pairs
from merlina.data.previews.row_shortening import truncate_row
from merlina.data.readers.data_files import file_at
from merlina.data.readers.hub import count_hub_rows as count_hub_rows_of
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import describe_encoding
from merlina.errors import DataError, shorten
from merlina.schemas.operations import CountHubRows, DescribeData, FormattedRows, PreviewFormatted
from merlina.worker.encoding import EncodedPair, PairEncoder
from merlina.worker.helper.phases import PHASES
from merlina.worker.helper.rows import phase_name, stated_rows
from merlina.worker.helper.token_texts import token_texts

_MAX_SECONDS = 60.0
_MAX_TOKENS_SHOWN = 4096
_MAX_PIECE_LENGTH = 200


def count_hub_rows(operation: CountHubRows) -> int | None:
    """Return the number of rows that the Hub states for a split."""
    return count_hub_rows_of(operation.config.source, operation.token)


def preview_formatted(operation: PreviewFormatted) -> FormattedRows:
    """Format rows, with token ids if the configuration has `model_name`. Raises DataError, ModelError."""
    with PHASES.during(phase_name(operation.row), _MAX_SECONDS, DataError):
        row_limit = RowLimit.of_megabytes(operation.max_row_mb)
        selection = RowSelection(operation.limit, operation.row, operation.only)
        show, make_examiner = sample_builder(operation)
        config, file = operation.config, file_at(operation.file)
        preview = preview_pairs(config, file, operation.token, show, make_examiner, selection, row_limit)
        warnings = [*describe_encoding(config.source, file), *preview.warnings]
        return FormattedRows(**{**vars(preview), "warnings": warnings}, total_rows=stated_rows(config, file))


def sample_builder(
    operation: PreviewFormatted | DescribeData,
) -> tuple[SampleBuilder, Callable[[], RowExaminer]]:
    """Return what formats pairs, with token ids if the configuration has `model_name`, and makes their row examiner.

    Raises DataError, ModelError.
    """
    config = operation.config
    if config.model_name is None:
        return text_sample_builder(config.format), partial(row_examiner, config.format.format_type)
    # This import takes more than a second, and a preview of text alone does not need it.
    from merlina.worker.helper.tokenizer_cache import cached_tokenizer

    tokenizer = cached_tokenizer(config.model_name, operation.token, operation.trust_remote_code)
    encoder = PairEncoder(
        tokenizer,
        config.model_name,
        config.format,
        operation.max_length,
        operation.max_prompt_length,
        drop_overlong=config.drop_overlong,
    )
    return _token_sample_builder(encoder, tokenizer), encoder.row_examiner


def _token_sample_builder(encoder: PairEncoder, tokenizer: Any) -> SampleBuilder:
    special = frozenset(tokenizer.all_special_ids)

    def sample(encoded: EncodedPair) -> dict[str, Any]:
        text, ids = encoded.text, encoded.tokens
        tokens = {
            "prompt": _tokens(tokenizer, special, ids.prompt, text.prompt),
            "chosen": _tokens(tokenizer, special, ids.chosen, text.chosen or "", text.prompt),
            "rejected": _tokens(tokenizer, special, ids.rejected, text.rejected or "", text.prompt),
        }
        return {**truncate_row(text.sample), "tokens": tokens, "cut": asdict(encoded.cut)}

    def show(pairs: Sequence[Pair]) -> Iterator[Converted[Callable[[], dict[str, Any]]] | UnusableRowError]:
        for encoded in encoder.encode_all(pairs):
            if isinstance(encoded, UnusableRowError):
                yield encoded
            else:
                yield partial(sample, encoded), encoded.lengths, encoded.text.finding_kinds

    return show


def _tokens(tokenizer: Any, special: frozenset[int], ids: list[int], text: str, before: str = "") -> dict[str, Any]:
    """Return the first token ids, the text of each, the indices of special tokens, and the `count` of all ids."""
    shown = ids[:_MAX_TOKENS_SHOWN]
    return {
        "ids": shown,
        "pieces": [shorten(piece, _MAX_PIECE_LENGTH) for piece in token_texts(tokenizer, shown, text, before)],
        "special": [index for index, token in enumerate(shown) if token in special],
        "count": len(ids),
    }
