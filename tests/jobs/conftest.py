"""Fixtures for tests of jobs without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from merlina.storage.database import Database
from tests.jobs.backend import Backend


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, which is copied, since migrations take longer than most of these tests."""
    file = tmp_path_factory.mktemp("database") / "merlina.db"
    database = Database(f"sqlite:///{file}")
    database.migrate()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return file


@pytest.fixture
def backend(tmp_path: Path, empty_database: Path) -> Iterator[Backend]:
    backend = Backend(tmp_path, empty_database)
    yield backend
    backend.database.close()
