"""The database: short reads from any thread, one write at a time, migrated when opened."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from merlina.errors import DiskFullError

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES = "merlina_writes"
# SQLITE_IOERR_SHMSIZE: the shared-memory file of the write-ahead log cannot grow.
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_POSTGRES_DISK_FULL = "53100"


class Database:
    """An engine with two kinds of short transactions, `read` and `write`.

    SQLite has one writer: `write` holds a lock of this process and takes the database's write lock when it begins, so
    that data read inside it stay valid until the commit. `write_count` changes at the end of each write: data read
    after it stay valid while it is unchanged.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.write_count = 0
        self._write_lock = threading.Lock()
        self.engine = create_engine(url, pool_size=16, max_overflow=48)
        if self.is_sqlite:
            _tune_sqlite(self.engine)

    @property
    def is_sqlite(self) -> bool:
        return make_url(self.url).get_backend_name() == "sqlite"

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        with _raise_disk_full(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        with self._write_lock:
            try:
                with _raise_disk_full(), self._writer() as connection, connection.begin():
                    yield connection
            finally:
                self.write_count += 1

    def migrate(self, version: str = "head") -> None:
        """Migrate the tables to a version, by default the newest."""
        from alembic import command  # a tenth of the server's start time, needed once per version

        config = migrations()
        with self._write_lock, self._writer() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, version)

    def _writer(self) -> Connection:
        return self.engine.connect().execution_options(**{_WRITES: True})

    def size_bytes(self) -> int:
        """Return the size of the database with its write-ahead log; 0 if it is not a file."""
        name = make_url(self.url).database if self.is_sqlite else None
        files = [Path(f"{name}{ending}") for ending in ("", "-wal")] if name else []
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self.engine.dispose()


def migrations() -> Config:
    """Return Alembic's configuration for the migrations, without a connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def database_versions() -> list[str]:
    """Return all versions of the tables, oldest first: the revisions that the migrations' file names begin with."""
    return sorted(file.name.split("_")[0] for file in (_MIGRATIONS / "versions").glob("[0-9]*_*.py"))


@contextlib.contextmanager
def _raise_disk_full() -> Iterator[None]:
    """Raise DiskFullError in place of the driver's error if the disk is full."""
    try:
        yield
    except OperationalError as error:
        if not _is_disk_full(error):
            raise
        raise DiskFullError("The disk is full (database): free some space and try again") from error


def _is_disk_full(error: OperationalError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code in _SQLITE_FULL or getattr(error.orig, "sqlstate", None) == _POSTGRES_DISK_FULL


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: Any) -> None:
        # The driver would send BEGIN too late for a write lock at the start; `_on_begin` sends it instead.
        dbapi_connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            dbapi_connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
