"""Previews that need the Hub's client or a tokenizer, by the very functions a run uses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from merlina.data.hub import count_hub_rows
from merlina.data.pairs import Pair
from merlina.data.preview import Show, preview_formatted, preview_rows, show_text
from merlina.schemas.datasets import DatasetConfig
from merlina.worker.encoding import PairEncoder


def rows(config: dict[str, Any], file: str | None, limit: int, token: str | None) -> list[dict[str, Any]]:
    return preview_rows(DatasetConfig.model_validate(config), Path(file) if file else None, token, limit)


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
) -> dict[str, Any]:
    """A FormattedPreview; with tokens where the data set's `model_name` says whose."""
    dataset = DatasetConfig.model_validate(config)
    if dataset.model_name is None:
        show = show_text(dataset.format)
    else:
        # Takes seconds to import, and a preview of text alone has no need of it.
        from merlina.worker.helper_inspection import cached_tokenizer

        tokenizer = cached_tokenizer(dataset.model_name, token, trust_remote_code)
        encoder = PairEncoder(tokenizer, dataset.model_name, dataset.format, max_length, max_prompt_length)
        show = _show_tokens(encoder, tokenizer)
    preview = preview_formatted(dataset, Path(file) if file else None, token, show, limit)
    return {**vars(preview), "findings": [finding.model_dump() for finding in preview.findings]}


def _show_tokens(encoder: PairEncoder, tokenizer: Any) -> Show:
    special = frozenset(tokenizer.all_special_ids)

    def show(pair: Pair) -> tuple[dict[str, Any], Any]:
        made = encoder.encode(pair)
        ids = {"prompt": made.tokens.prompt, "chosen": made.tokens.chosen, "rejected": made.tokens.rejected}
        tokens = {name: _tokens(part, tokenizer, special) for name, part in ids.items()}
        return {**asdict(made.text), "tokens": tokens, "cut": asdict(made.cut)}, made.lengths

    return show


def _tokens(ids: list[int], tokenizer: Any, special: frozenset[int]) -> dict[str, Any]:
    """The ids that are trained on, the text of each, and at which places the special ones stand."""
    return {
        "ids": ids,
        "pieces": [tokenizer.decode([token]) for token in ids],
        "special": [place for place, token in enumerate(ids) if token in special],
    }
