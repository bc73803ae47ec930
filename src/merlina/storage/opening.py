"""Opening the database. One that this version cannot use is refused before anything is written to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Select, column, create_engine, inspect, make_url, select, table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from merlina.errors import ServerError, first_line
from merlina.storage.database import Database, database_versions
from merlina.storage.tables import metadata

_VERSION_TABLE = "alembic_version"
# Tables of every version of the database.
_FIRST_TABLES = {"jobs", "metrics", "uploads"}
_MAGIC = b"SQLite format 3\0"


def open_database(url: str, setting: str) -> Database:
    """Open the database at `url` and bring its tables to this version; `setting` names where `url` comes from.

    Raises ServerError if the database cannot be opened, was written by a newer version or belongs to another program.
    The database is unchanged then.
    """
    try:
        version = _usable_version(url, setting)
        database = Database(url)
        try:
            if version != database_versions()[-1]:
                database.migrate()
        except BaseException:
            database.close()
            raise
        return database
    except (SQLAlchemyError, ModuleNotFoundError, OSError) as error:
        raise ServerError(f"The database of {setting} cannot be opened: {_reason(error)}") from error


def _usable_version(url: str, setting: str) -> str | None:
    """Return the version of an existing database, read through a connection that cannot write to it.

    Return None if it has no tables yet. Raises ServerError if this version of Merlina cannot use it.
    """
    readable, file = url, None
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite:
        file = Path(parsed.database or "")
        if not parsed.database or not file.exists() or file.stat().st_size == 0:
            return None
        _refuse_unusable_file(file, setting)
        readable = f"sqlite:///file:{quote(str(file))}?mode=ro&uri=true"
    engine = create_engine(readable)
    try:
        with engine.connect() as connection:
            tables = set(inspect(connection).get_table_names())
            has_version = _VERSION_TABLE in tables
            query: Select[tuple[str]] = select(column("version_num")).select_from(table(_VERSION_TABLE))
            versions = [str(version) for version in connection.execute(query).scalars()] if has_version else []
    finally:
        engine.dispose()
    name = str(file or setting)
    if versions:
        _refuse_unknown_versions(versions, name)
        if tables >= _FIRST_TABLES:
            return max(versions)
    # Several programs may share a database server, but not a file.
    shared = not is_sqlite and not versions
    foreign = tables & set(metadata.tables) if shared else tables - {_VERSION_TABLE}
    if foreign:
        raise ServerError(
            f"{name} is not a database of Merlina: it contains the tables {', '.join(sorted(foreign)[:5])} of another "
            "program; choose another DATA_DIR or DATABASE_URL"
        )
    return None


def _refuse_unusable_file(file: Path, setting: str) -> None:
    if not file.is_file():
        raise ServerError(f"The database of {setting} cannot be opened: {file} is not a file")
    if not os.access(file, os.R_OK | os.W_OK):
        raise ServerError(f"The database of {setting} cannot be opened: no permission to read and write {file}")
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise ServerError(f"The database of {setting} cannot be opened: {file} is not a SQLite database")


def _refuse_unknown_versions(versions: Sequence[str], name: str) -> None:
    known = database_versions()
    for version in versions:
        if version in known:
            continue
        newest = known[-1]
        if version.isdigit() and int(version) > int(newest):
            raise ServerError(
                f"{name} was written by a newer version of Merlina (database version {version}; this one knows up to "
                f"{newest}): install that version again, or choose another DATA_DIR or DATABASE_URL"
            )
        raise ServerError(
            f"{name} has the database version {version[:40]!r}, which no version of Merlina up to this one has "
            f"written; choose another DATA_DIR or DATABASE_URL"
        )


def _reason(error: Exception) -> str:
    """Return the database driver's message without SQLAlchemy's additions."""
    return first_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
