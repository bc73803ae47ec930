"""Data sets: upload, list, look inside (API document, "Dataset Management")."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from merlina.api.services import Inject, Services
from merlina.api.uploads import accept_upload, delete_upload
from merlina.api.views import upload_answer, upload_entry
from merlina.data.columns import guess_mapping
from merlina.data.files import count_rows, detect_format
from merlina.data.preview import column_names, preview_formatted, preview_rows, show_text
from merlina.data.sources import resolve_file
from merlina.errors import InvalidRequestError
from merlina.preflight.rows import rows_known
from merlina.schemas.datasets import (
    ColumnsResponse,
    DatasetQuestion,
    PreviewResponse,
    UploadDeleted,
    UploadList,
    UploadResponse,
)
from merlina.schemas.training import default_prompt_length
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
    return upload_answer(record)


@router.get("/uploads")
def list_uploads(services: Inject) -> UploadList:
    """All uploads, newest first."""
    with services.database.read() as connection:
        records = uploads.newest_first(connection)
    return UploadList(datasets=[upload_entry(record) for record in records])


@router.delete("/uploads/{dataset_id}")
def remove_upload(dataset_id: str, services: Inject, force: bool = False) -> UploadDeleted:
    """Deletes an upload. One that a job needs to run or to resume is deleted only with `force`."""
    delete_upload(services, dataset_id, force=force)
    return UploadDeleted(message=f"Upload {dataset_id} deleted successfully", dataset_id=dataset_id)


@router.post("/preview")
def preview(config: DatasetQuestion, services: Inject) -> PreviewResponse:
    """The first rows as they are in the file."""
    file = _file(services, config)
    samples = _first_rows(services, config, file)
    return PreviewResponse(
        samples=samples, num_samples=len(samples), total_rows=rows_known(config.source, file, services.database)
    )


@router.post("/preview-formatted")
def preview_as_trained(
    config: DatasetQuestion,
    services: Inject,
    max_length: Annotated[int, Query(ge=16, le=1_048_576)] = 2048,
    max_prompt_length: Annotated[int | None, Query(ge=8, le=1_048_576)] = None,
) -> PreviewResponse:
    """The first pairs as the text that is trained on, and with `model_name` as tokens; what to know of the rows."""
    max_prompt_length = max_prompt_length or default_prompt_length(max_length)
    if max_prompt_length >= max_length:
        raise InvalidRequestError(
            "The request is not valid",
            [f"max_prompt_length: {max_prompt_length} must be below max_length {max_length}"],
        )
    file = _file(services, config)
    if file is None or config.model_name is not None:
        found = _ask_helper(
            services,
            "preview_formatted",
            config,
            file=str(file) if file else None,
            limit=_FORMATTED_SAMPLES,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            trust_remote_code=services.settings.trust_remote_code,
        )
    else:
        found = vars(preview_formatted(config, file, None, show_text(config.format), _FORMATTED_SAMPLES))
    return PreviewResponse(
        num_samples=len(found["samples"]), total_rows=rows_known(config.source, file, services.database), **found
    )


@router.post("/columns")
def columns(config: DatasetQuestion, services: Inject) -> ColumnsResponse:
    """Column names with the first rows and the number of all, for mapping them to ours."""
    file = _file(services, config)
    samples = _first_rows(services, config, file)
    names = column_names(samples)
    total = rows_known(config.source, file, services.database)
    if total is None and file is None:
        total = _ask_helper(services, "count_hub_rows", config)
    elif total is None and file is not None:
        total = count_rows(file, config.source.file_format or detect_format(file))
    return ColumnsResponse(columns=names, samples=samples, total_rows=total, suggested_mapping=guess_mapping(names))


def _file(services: Services, config: DatasetQuestion) -> Path | None:
    return resolve_file(config.source, services.settings.uploads_dir, services.allowed)


def _first_rows(services: Services, config: DatasetQuestion, file: Path | None) -> list[dict[str, Any]]:
    if file is not None:
        return preview_rows(config, file, None, _RAW_SAMPLES)
    found: list[dict[str, Any]] = _ask_helper(services, "preview_rows", config, file=None, limit=_RAW_SAMPLES)
    return found


def _ask_helper(services: Services, operation: str, config: DatasetQuestion, **arguments: Any) -> Any:
    """Has the helper process do what needs the Hub's client or a tokenizer."""
    token = config.hf_token or services.settings.hf_token
    return services.helper.call(
        operation,
        config=config.model_dump(mode="json", exclude={"hf_token"}),
        token=token.get_secret_value() if token else None,
        **arguments,
    )
