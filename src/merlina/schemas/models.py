"""Request and response models of base models and their tokenizers (docs/api.md, "Models")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merlina.schemas.base import RequestModel, ResponseModel, Token
from merlina.schemas.inspection import TokenizerFacts


class PreloadRequest(RequestModel):
    """`POST /model/preload`."""

    model_name: str = Field(min_length=1, max_length=4096, description="Hub id, local folder, or `.gguf` file.")
    hf_token: Token | None = Field(default=None, description="For private and gated models; not stored.")


class PreloadResponse(ResponseModel, TokenizerFacts):
    """A loaded tokenizer."""

    status: Literal["success"] = "success"
    model_name: str


class CachedModels(ResponseModel):
    """Models with a tokenizer on this machine."""

    cached_models: list[str]
    count: int
