"""Base models' tokenizers (API document, "Model Management")."""

from __future__ import annotations

import threading

from fastapi import APIRouter, Request

from merlina.api.disconnects import run_while_connected
from merlina.api.services import Services, ServicesDep
from merlina.preflight.hub_access import cached_tokenizers
from merlina.preflight.models import model_repos
from merlina.schemas.models import CachedModels, PreloadRequest, PreloadResponse

router = APIRouter(prefix="/model", tags=["models"])


@router.post("/preload")
async def preload(request: PreloadRequest, connection: Request, services: ServicesDep) -> PreloadResponse:
    """Loads a model's tokenizer, so that previews and checks with it are quick."""
    return await run_while_connected(connection, services.slow_threads, _preload, services, request)


@router.get("/cached")
def cached(services: ServicesDep) -> CachedModels:
    """Models that were preloaded, and those whose tokenizer lies in the Hub's cache on this machine."""
    names = sorted(services.preloaded | cached_tokenizers())
    return CachedModels(cached_models=names, count=len(names))


def _preload(services: Services, request: PreloadRequest, *, closed: threading.Event) -> PreloadResponse:
    token, trust_remote_code = request.hf_token or services.settings.hf_token, services.settings.trust_remote_code
    facts = services.helpers.call(
        "tokenizer_facts",
        model_repos(request.model_name, trust_remote_code),
        closed=closed,
        model_name=request.model_name,
        token=token.get_secret_value() if token else None,
        trust_remote_code=trust_remote_code,
    )
    services.preloaded.add(request.model_name)
    return PreloadResponse(model_name=request.model_name, **facts)
