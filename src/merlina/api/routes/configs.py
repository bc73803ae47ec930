"""Saved configurations (docs/api.md, "Saved configurations")."""

from __future__ import annotations

from fastapi import APIRouter

from merlina.api.services import ServicesDep
from merlina.schemas.configs import (
    ConfigDeleted,
    ConfigList,
    ConfigResponse,
    ConfigWritten,
    ExportConfigRequest,
    ImportConfigRequest,
    SaveConfigRequest,
)

router = APIRouter(prefix="/configs", tags=["configs"])


@router.post("/save")
def save(request: SaveConfigRequest, services: ServicesDep) -> ConfigWritten:
    """Save a configuration, or part of one, under a name."""
    path = services.configs.save(request.name, request.config, request.description, request.tags)
    return ConfigWritten(message=f"Configuration '{request.name}' saved successfully", filepath=str(path))


@router.get("/list")
def list_all(services: ServicesDep, tag: str | None = None) -> ConfigList:
    """List all saved configurations, or those with a tag."""
    found = services.configs.entries(tag)
    return ConfigList(configs=found, count=len(found))


@router.get("/{name}")
def get(name: str, services: ServicesDep, include_metadata: bool = False) -> ConfigResponse:
    """Return a saved configuration, which can be sent to /train if it is complete."""
    saved = services.configs.get(name)
    return ConfigResponse(config=saved.model_dump() if include_metadata else saved.config)


@router.delete("/{name}")
def delete(name: str, services: ServicesDep) -> ConfigDeleted:
    """Delete a saved configuration."""
    services.configs.delete(name)
    return ConfigDeleted(message=f"Configuration '{name}' deleted successfully")


@router.post("/export")
def export(request: ExportConfigRequest, services: ServicesDep) -> ConfigWritten:
    """Write a saved configuration to a file under ALLOWED_PATHS."""
    path = services.allowed.resolve(request.output_path, "output_path")
    services.configs.export(request.name, path)
    return ConfigWritten(message=f"Configuration exported to {path}", filepath=str(path))


@router.post("/import")
def import_(request: ImportConfigRequest, services: ServicesDep) -> ConfigWritten:
    """Save a configuration from a file under ALLOWED_PATHS."""
    path = services.allowed.resolve(request.filepath, "filepath")
    name, found = services.configs.read_file(path, request.name)
    saved = services.configs.save(name, found.config, found.description, found.tags)
    return ConfigWritten(message="Configuration imported successfully", filepath=str(saved))
