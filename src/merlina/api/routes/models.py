"""Tokenizers of base models (docs/api.md, "Models")."""

from __future__ import annotations

import threading

from fastapi import APIRouter, Request

from merlina.api.long_requests import run_while_connected
from merlina.api.services import Services, ServicesDep
from merlina.preflight.hub_access import cached_tokenizers
from merlina.preflight.models import model_repos
from merlina.schemas.models import CachedModels, PreloadRequest, PreloadResponse
from merlina.schemas.operations import InspectTokenizer

router = APIRouter(prefix="/model", tags=["models"])


@router.post("/preload")
async def preload(request: PreloadRequest, connection: Request, services: ServicesDep) -> PreloadResponse:
    """Load a model's tokenizer in advance, so that later previews and checks are fast."""
    return await run_while_connected(connection, services.long_request_threads, _preload, services, request)


@router.get("/cached")
def cached(services: ServicesDep) -> CachedModels:
    """List the models that were preloaded or have a tokenizer in this machine's Hub cache."""
    names = sorted(services.preloaded | cached_tokenizers())
    return CachedModels(cached_models=names, count=len(names))


def _preload(services: Services, request: PreloadRequest, *, closed: threading.Event) -> PreloadResponse:
    token, trust_remote_code = services.settings.hub_token(request.hf_token), services.settings.trust_remote_code
    operation = InspectTokenizer(model_name=request.model_name, token=token, trust_remote_code=trust_remote_code)
    facts = services.helpers.call(operation, model_repos(request.model_name, trust_remote_code), closed=closed)
    services.preloaded.add(request.model_name)
    return PreloadResponse(model_name=request.model_name, **facts.model_dump())
