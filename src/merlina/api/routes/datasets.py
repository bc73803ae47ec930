"""Data sets: uploads, previews, columns (docs/api.md, "Data sets")."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.requests import ClientDisconnect

from merlina.api.long_requests import run_while_connected
from merlina.api.responses import upload_entry, upload_response
from merlina.api.services import Services, ServicesDep
from merlina.api.uploads.receiving import accept_upload, delete_upload
from merlina.data.columns import guess_mapping
from merlina.data.readers.sources import resolve_file
from merlina.domain.data_urls import FileLocation
from merlina.errors import Finding, InvalidRequestError
from merlina.executors.helper_pools import Repo
from merlina.preflight.models import model_repos
from merlina.schemas.datasets.config import DatasetRequest, RowFilter
from merlina.schemas.datasets.responses import (
    ColumnsResponse,
    PreviewResponse,
    UploadDeleted,
    UploadList,
    UploadResponse,
)
from merlina.schemas.operations import CountHubRows, Operation, PreviewFormatted, PreviewRows, R, RawRows
from merlina.schemas.training.config import default_prompt_length
from merlina.storage import uploads

_log = logging.getLogger(__name__)
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
_CLIENT_CLOSED_REQUEST = 499
_FORMATTED_SAMPLES = 5
_FirstRow = Annotated[
    int, Query(ge=1, le=1_000_000_000_000, description="Number of the first row to show. Rows count from 1.")
]


@router.post("/upload-file", openapi_extra=_UPLOAD_BODY)
async def upload_file(request: Request, services: ServicesDep) -> UploadResponse:
    """Upload a json, jsonl, csv, tsv or parquet file; it is stored only if all of it can be read."""
    try:
        record = await accept_upload(request, services)
    except ClientDisconnect as error:
        _log.info("an upload was aborted by its client and is discarded")
        raise HTTPException(_CLIENT_CLOSED_REQUEST) from error
    return upload_response(record)


@router.get("/uploads")
def list_uploads(services: ServicesDep) -> UploadList:
    """List all uploads, newest first."""
    with services.database.read() as connection:
        records = uploads.newest_first(connection)
    return UploadList(datasets=[upload_entry(record) for record in records])


@router.delete("/uploads/{dataset_id}")
def remove_upload(dataset_id: str, services: ServicesDep, force: bool = False) -> UploadDeleted:
    """Delete an upload. If a job needs it to run or to resume, `force` is required."""
    delete_upload(services, dataset_id, force=force)
    return UploadDeleted(message=f"Upload {dataset_id} deleted successfully", dataset_id=dataset_id)


@router.post("/preview")
async def preview(
    config: DatasetRequest, connection: Request, services: ServicesDep, row: _FirstRow = 1
) -> PreviewResponse:
    """Return rows as they are in the file."""
    return await run_while_connected(connection, services.long_request_threads, _preview, services, config, row)


@router.post("/preview-formatted")
async def preview_as_trained(
    config: DatasetRequest,
    connection: Request,
    services: ServicesDep,
    max_length: Annotated[int, Query(ge=16, le=1_048_576)] = 2048,
    max_prompt_length: Annotated[int | None, Query(ge=8, le=1_048_576)] = None,
    row: _FirstRow = 1,
    only: Annotated[
        RowFilter | None,
        Query(
            description="Show only rows with findings of this kind. findings: of any kind but parsed_from_text. The "
            "search ends after 3 s; next_row is the row from which to continue it."
        ),
    ] = None,
) -> PreviewResponse:
    """Return pairs as formatted for training, with `model_name` also as tokens, and findings on the rows."""
    max_prompt_length = max_prompt_length or default_prompt_length(max_length)
    if max_prompt_length >= max_length:
        raise InvalidRequestError(
            "The request is not valid",
            [Finding(f"{max_prompt_length} must be below max_length {max_length}", "max_prompt_length")],
        )
    operation = PreviewFormatted(
        config=config,
        file=None,
        token=services.settings.hub_token(config.hf_token),
        limit=_FORMATTED_SAMPLES,
        row=row,
        only=only,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        trust_remote_code=services.settings.trust_remote_code,
        max_row_mb=services.settings.max_row_size_mb,
    )
    return await run_while_connected(
        connection, services.long_request_threads, _preview_as_trained, services, config, operation
    )


@router.post("/columns")
async def columns(config: DatasetRequest, connection: Request, services: ServicesDep) -> ColumnsResponse:
    """Return the columns with a suggested mapping, the first rows and the number of rows."""
    return await run_while_connected(connection, services.long_request_threads, _columns, services, config)


def _preview(services: Services, config: DatasetRequest, row: int, *, closed: threading.Event) -> PreviewResponse:
    file = _file(services, config)
    found = _stored_rows(services, config, file, closed, row)
    return PreviewResponse(
        samples=found.samples,
        num_samples=len(found.samples),
        total_rows=services.row_counts.known(config.source, file, found.total_rows),
        warnings=found.warnings,
        detected_format=found.detected_format,
        next_row=found.next_row,
    )


def _preview_as_trained(
    services: Services, config: DatasetRequest, operation: PreviewFormatted, *, closed: threading.Event
) -> PreviewResponse:
    file = _file(services, config)
    found = _call_helper(services, operation.model_copy(update={"file": file}), config, file, closed)
    return PreviewResponse(
        samples=found.samples,
        num_samples=len(found.samples),
        total_rows=services.row_counts.known(config.source, file, found.total_rows),
        warnings=found.warnings,
        findings=found.findings,
        rows_examined=found.rows_examined,
        detected_format=found.detected_format,
        rows=found.rows,
        next_row=found.next_row,
        lengths=found.lengths,
    )


def _columns(services: Services, config: DatasetRequest, *, closed: threading.Event) -> ColumnsResponse:
    file = _file(services, config)
    found = _stored_rows(services, config, file, closed)
    total = services.row_counts.known(config.source, file, found.total_rows)
    if total is None and file is None:
        operation = CountHubRows(config=config, token=services.settings.hub_token(config.hf_token))
        total = _call_helper(services, operation, config, None, closed)
    elif total is None and isinstance(file, Path):
        total = services.row_counts.count(config.source, file, closed)
    return ColumnsResponse(
        columns=found.columns,
        samples=found.samples,
        total_rows=total,
        suggested_mapping=guess_mapping(found.columns) if _needs_mapping(found) else {},
        warnings=found.warnings,
        detected_format=found.detected_format,
    )


def _needs_mapping(found: RawRows) -> bool:
    """Return whether a mapping of column names may help; formats other than the standard one have their own names."""
    return found.detected_format is None or found.detected_format.name == "standard"


def _file(services: Services, config: DatasetRequest) -> FileLocation | None:
    return resolve_file(config.source, services.settings.uploads_dir, services.allowed)


def _stored_rows(
    services: Services, config: DatasetRequest, file: FileLocation | None, closed: threading.Event, row: int = 1
) -> RawRows:
    # The columns of a data set do not depend on the tokenizer.
    config = config.model_copy(update={"model_name": None})
    operation = PreviewRows(
        config=config,
        file=file,
        token=services.settings.hub_token(config.hf_token),
        limit=_RAW_SAMPLES,
        row=row,
        max_row_mb=services.settings.max_row_size_mb,
    )
    return _call_helper(services, operation, config, file, closed)


def _call_helper(
    services: Services,
    operation: Operation[R],
    config: DatasetRequest,
    file: FileLocation | None,
    closed: threading.Event,
) -> R:
    """Read rows in a helper process, which has a tokenizer if the configuration names a model."""
    if file is not None and config.model_name is None:
        return services.helpers.reader_of(file).call(operation, closed=closed)
    repos = [Repo("dataset", str(config.source.repo_id))] if file is None else []
    repos += model_repos(config.model_name, services.settings.trust_remote_code) if config.model_name else []
    return services.helpers.call(operation, repos, files=[file], closed=closed)
