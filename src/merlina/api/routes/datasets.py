"""Data sets: upload, list, look inside (API document, "Dataset Management")."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from merlina.api.services import Inject, Services
from merlina.api.uploads import accept_upload, delete_upload
from merlina.api.views import upload_entry
from merlina.data.files import detect_format, known_rows
from merlina.data.preview import preview_formatted, preview_rows
from merlina.data.sources import resolve_file
from merlina.schemas.datasets import DatasetConfig, PreviewResponse, UploadDeleted, UploadList, UploadResponse
from merlina.storage import uploads

router = APIRouter(prefix="/dataset", tags=["datasets"])

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_RAW_SAMPLES = 10
_FORMATTED_SAMPLES = 5


@router.post("/upload-file", openapi_extra=_UPLOAD_BODY)
async def upload_file(request: Request, services: Inject) -> UploadResponse:
    """Takes in a json, jsonl, csv or parquet file once all of it can be read."""
    record = await accept_upload(request, services)
    return UploadResponse(
        dataset_id=record.dataset_id,
        filename=record.filename,
        size=record.size,
        file_format=record.file_format,
        total_rows=record.total_rows,
    )


@router.get("/uploads")
def list_uploads(services: Inject) -> UploadList:
    """All uploads, newest first."""
    with services.database.read() as connection:
        records = uploads.newest_first(connection)
    return UploadList(datasets=[upload_entry(record) for record in records])


@router.delete("/uploads/{dataset_id}")
def remove_upload(dataset_id: str, services: Inject) -> UploadDeleted:
    """Deletes an upload that no waiting or running job needs."""
    delete_upload(services, dataset_id)
    return UploadDeleted(message=f"Upload {dataset_id} deleted successfully", dataset_id=dataset_id)


@router.post("/preview")
def preview(config: DatasetConfig, services: Inject) -> PreviewResponse:
    """The first rows as they are in the file."""
    file = _file(services, config)
    if file is None:
        samples = _ask_helper(services, "preview_rows", config, None, _RAW_SAMPLES)
    else:
        samples = preview_rows(config, file, None, _RAW_SAMPLES)
    return PreviewResponse(samples=samples, num_samples=len(samples), total_rows=_total_rows(services, config, file))


@router.post("/preview-formatted")
def preview_as_trained(config: DatasetConfig, services: Inject) -> PreviewResponse:
    """The first pairs as the text that is trained on."""
    file = _file(services, config)
    if file is None or config.format.format_type == "tokenizer":
        found = _ask_helper(services, "preview_formatted", config, file, _FORMATTED_SAMPLES)
        samples, skipped = found["samples"], [(row["number"], row["reason"]) for row in found["skipped"]]
    else:
        rendered, left_out = preview_formatted(config, file, None, None, _FORMATTED_SAMPLES)
        samples = [asdict(sample) for sample in rendered]
        skipped = [(row.number, row.reason) for row in left_out]
    return PreviewResponse(
        samples=samples,
        num_samples=len(samples),
        total_rows=_total_rows(services, config, file),
        warnings=[f"row {number} can't be used: {reason}" for number, reason in skipped],
    )


def _file(services: Services, config: DatasetConfig) -> Path | None:
    return resolve_file(config.source, services.settings.uploads_dir, services.allowed)


def _ask_helper(services: Services, operation: str, config: DatasetConfig, file: Path | None, limit: int) -> Any:
    """Has the helper process do what needs the Hub's client or a tokenizer."""
    token = services.settings.hf_token
    return services.helper.call(
        operation,
        config=config.model_dump(mode="json"),
        file=str(file) if file else None,
        limit=limit,
        token=token.get_secret_value() if token else None,
    )


def _total_rows(services: Services, config: DatasetConfig, file: Path | None) -> int | None:
    """The whole count where it is known without reading the file."""
    if config.source.dataset_id is not None:
        with services.database.read() as connection:
            record = uploads.get(connection, config.source.dataset_id)
        return record.total_rows if record else None
    if file is None:
        return None
    return known_rows(file, config.source.file_format or detect_format(file))
