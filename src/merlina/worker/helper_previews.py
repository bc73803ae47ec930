"""Previews that need the Hub's client or a tokenizer, by the very functions a run uses."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from merlina.data.preview import preview_formatted, preview_rows
from merlina.errors import DataError
from merlina.schemas.datasets import DatasetConfig
from merlina.training.models import load_tokenizer
from merlina.worker.templates import TokenizerTemplate


def rows(config: dict[str, Any], file: str | None, limit: int, token: str | None) -> list[dict[str, Any]]:
    return preview_rows(DatasetConfig.model_validate(config), Path(file) if file else None, token, limit)


def formatted(config: dict[str, Any], file: str | None, limit: int, token: str | None) -> dict[str, Any]:
    dataset = DatasetConfig.model_validate(config)
    rendered, skipped = preview_formatted(
        dataset, Path(file) if file else None, token, _template(dataset, token), limit
    )
    return {"samples": [asdict(sample) for sample in rendered], "skipped": [asdict(row) for row in skipped]}


def _template(dataset: DatasetConfig, token: str | None) -> TokenizerTemplate | None:
    if dataset.format.format_type != "tokenizer":
        return None
    if dataset.model_name is None:
        raise DataError("model_name is needed to preview the format 'tokenizer': it says whose chat template to use")
    return TokenizerTemplate(_tokenizer(dataset.model_name, token), dataset.model_name)


@lru_cache(maxsize=4)
def _tokenizer(name: str, token: str | None) -> Any:
    return load_tokenizer(name, token)
