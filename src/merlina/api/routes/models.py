"""Base models' tokenizers (API document, "Model Management")."""

from __future__ import annotations

from fastapi import APIRouter

from merlina.api.services import Inject
from merlina.preflight.hub import cached_tokenizers
from merlina.schemas.models import CachedModels, PreloadRequest, PreloadResponse

router = APIRouter(prefix="/model", tags=["models"])


@router.post("/preload")
def preload(request: PreloadRequest, services: Inject) -> PreloadResponse:
    """Loads a model's tokenizer, so that previews and checks with it are quick."""
    token = request.hf_token or services.settings.hf_token
    facts = services.helper.call(
        "tokenizer_facts",
        model_name=request.model_name,
        token=token.get_secret_value() if token else None,
        trust_remote_code=services.settings.trust_remote_code,
    )
    services.preloaded.add(request.model_name)
    return PreloadResponse(model_name=request.model_name, **facts)


@router.get("/cached")
def cached(services: Inject) -> CachedModels:
    """Models that were preloaded, and those whose tokenizer lies in the Hub's cache on this machine."""
    names = sorted(services.preloaded | cached_tokenizers())
    return CachedModels(cached_models=names, count=len(names))
