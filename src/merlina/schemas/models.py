"""Base models and their tokenizers (API document, "Model Management")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merlina.schemas.base import RequestModel, ResponseModel, Token
from merlina.schemas.inspection import TokenizerFacts


class PreloadRequest(RequestModel):
    """`POST /model/preload`."""

    model_name: str = Field(min_length=1, max_length=4096, description="Hub id, local folder, or `.gguf` file")
    hf_token: Token | None = Field(default=None, description="for private and gated models; not stored")


class PreloadResponse(ResponseModel, TokenizerFacts):
    """A tokenizer that was loaded."""

    status: Literal["success"] = "success"
    model_name: str


class CachedModels(ResponseModel):
    """Models whose tokenizer is on this machine."""

    cached_models: list[str]
    count: int
