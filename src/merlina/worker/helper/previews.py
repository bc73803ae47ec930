"""Previews that need the Hub's client or a tokenizer, by the very functions a run uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from merlina.data.doctor import Lengths
from merlina.data.hub import count_hub_rows
from merlina.data.pairs import Pair
from merlina.data.preview import SampleBuilder, preview_formatted, text_sample_builder
from merlina.data.row_limit import RowLimit
from merlina.data.truncation import truncate_row
from merlina.errors import DataError, shorten
from merlina.schemas.datasets import DatasetConfig
from merlina.worker.encoding import EncodedPair, PairEncoder
from merlina.worker.helper.phases import PHASES
from merlina.worker.helper.rows import stated_rows
from merlina.worker.helper.token_texts import token_texts

_SECONDS = 60.0
_TOKENS_SHOWN = 4096
_LONGEST_PIECE = 200


def hub_rows(config: dict[str, Any], token: str | None) -> int | None:
    """How many rows the Hub says a split has."""
    source = DatasetConfig.model_validate(config).source
    return count_hub_rows(str(source.repo_id), source.split, token)


def formatted(
    config: dict[str, Any],
    file: str | None,
    limit: int,
    token: str | None,
    max_length: int,
    max_prompt_length: int,
    trust_remote_code: bool,
    max_row_mb: int,
) -> dict[str, Any]:
    """A FormattedPreview; with tokens where the data set's `model_name` says whose, and `total_rows` where the file
    states it."""
    with PHASES.during("Reading the first rows", _SECONDS, DataError):
        dataset = DatasetConfig.model_validate(config)
        if dataset.model_name is None:
            show = text_sample_builder(dataset.format)
        else:
            # Takes seconds to import, and a preview of text alone has no need of it.
            from merlina.worker.helper.inspection import cached_tokenizer

            tokenizer = cached_tokenizer(dataset.model_name, token, trust_remote_code)
            encoder = PairEncoder(tokenizer, dataset.model_name, dataset.format, max_length, max_prompt_length)
            show = _show_tokens(encoder, tokenizer)
        path, row_limit = Path(file) if file else None, RowLimit.of_megabytes(max_row_mb)
        preview = preview_formatted(dataset, path, token, show, limit, row_limit)
        findings = [finding.model_dump() for finding in preview.findings]
        return {**vars(preview), "findings": findings, "total_rows": stated_rows(dataset, path) if path else None}


def _show_tokens(encoder: PairEncoder, tokenizer: Any) -> SampleBuilder:
    special = frozenset(tokenizer.all_special_ids)

    def sample(made: EncodedPair) -> dict[str, Any]:
        text, ids = made.text, made.tokens
        tokens = {
            "prompt": _tokens(tokenizer, special, ids.prompt, text.prompt),
            "chosen": _tokens(tokenizer, special, ids.chosen, text.chosen, text.prompt),
            "rejected": _tokens(tokenizer, special, ids.rejected, text.rejected or "", text.prompt),
        }
        return {**truncate_row(asdict(text)), "tokens": tokens, "cut": asdict(made.cut)}

    def show(pair: Pair) -> tuple[Callable[[], dict[str, Any]], Lengths]:
        made = encoder.encode(pair)
        return lambda: sample(made), made.lengths

    return show


def _tokens(tokenizer: Any, special: frozenset[int], ids: list[int], text: str, before: str = "") -> dict[str, Any]:
    """The ids that are trained on, the text of each, and at which places the special ones stand.

    Of very many only the first are shown; `count` is that of all.
    """
    shown = ids[:_TOKENS_SHOWN]
    return {
        "ids": shown,
        "pieces": [shorten(piece, _LONGEST_PIECE) for piece in token_texts(tokenizer, shown, text, before)],
        "special": [place for place, token in enumerate(shown) if token in special],
        "count": len(ids),
    }
