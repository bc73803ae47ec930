"""Queries on uploaded data sets. Their files are `DATA_DIR/uploads/<dataset_id>/rows.<format>`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, insert, select

from merlina.schemas.datasets.sources import FileFormat
from merlina.storage.tables import uploads


@dataclass(frozen=True)
class UploadRecord:
    """One accepted upload; `size` in bytes, `created_at` in epoch seconds."""

    dataset_id: str
    filename: str
    file_format: FileFormat
    size: int
    total_rows: int
    created_at: float


def add(connection: Connection, upload: UploadRecord) -> None:
    connection.execute(insert(uploads).values(asdict(upload)))


def newest_first(connection: Connection) -> list[UploadRecord]:
    query = select(uploads).order_by(uploads.c.created_at.desc(), uploads.c.dataset_id)
    return [UploadRecord(**row._mapping) for row in connection.execute(query)]


def get(connection: Connection, dataset_id: str) -> UploadRecord | None:
    row = connection.execute(select(uploads).where(uploads.c.dataset_id == dataset_id)).one_or_none()
    return UploadRecord(**row._mapping) if row else None


def remove(connection: Connection, dataset_id: str) -> bool:
    """Delete an upload; return False if it did not exist."""
    return connection.execute(delete(uploads).where(uploads.c.dataset_id == dataset_id)).rowcount > 0
