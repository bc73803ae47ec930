"""Conditions in which the server refuses to start: one error each, and no file is changed."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from merlina.api.folders import make_folders, sole_server
from merlina.errors import ServerError
from merlina.settings import Settings
from merlina.storage.database import Database, migrations
from merlina.storage.opening import open_database


def settings_in(folder: Path) -> Settings:
    return Settings(data_dir=folder / "data", models_dir=folder / "models", _env_file=None)  # type: ignore[call-arg]


def serve(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DATA_DIR": str(folder / "data"), "MODELS_DIR": str(folder / "models")}
    return subprocess.run(
        [sys.executable, "-m", "merlina", "serve", "--port", "0"],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def database_of_version(file: Path, version: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{file}")
    database.migrate()
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = ?", (version,))
    database.close()


def newest_version() -> str:
    newest = ScriptDirectory.from_config(migrations()).get_current_head()
    assert newest is not None
    return newest


@pytest.mark.slow
def test_a_database_of_a_newer_version_is_one_sentence_and_nothing_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "data" / "merlina.db"
    database_of_version(file, "9999")
    leftover = tmp_path / "data" / "uploads" / ".incoming_upload_20260101_000000_0123abcd" / "rows"
    run = tmp_path / "data" / "runs" / "job_20260101_000000" / "checkpoints"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("{}")
    run.mkdir(parents=True)
    before = file.read_bytes()
    done = serve(tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert "newer version of Merlina" in " ".join(lines)
    assert "9999" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert file.read_bytes() == before
    assert leftover.exists()
    assert run.exists()
    # The refused database is unchanged: the version that wrote it can open it.
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (newest_version(),))
    open_database(f"sqlite:///{file}", "data").close()


@pytest.mark.slow
def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "theirs.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(ServerError, match="contains the tables recipes of another program"):
        open_database(f"sqlite:///{file}", "DATABASE_URL")
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_version_that_no_merlina_wrote_is_named(tmp_path: Path) -> None:
    database_of_version(tmp_path / "m.db", "ab12cd")
    with pytest.raises(ServerError, match="'ab12cd', which no version of Merlina"):
        open_database(f"sqlite:///{tmp_path / 'm.db'}", "DATABASE_URL")


def test_a_file_that_is_not_a_database_is_named_and_an_empty_one_becomes_one(tmp_path: Path) -> None:
    file = tmp_path / "m.db"
    file.write_text("my notes, which are longer than the head of a database")
    with pytest.raises(ServerError, match=r"m\.db is not a SQLite database"):
        open_database(f"sqlite:///{file}", "DATABASE_URL")
    file.write_text("")
    open_database(f"sqlite:///{file}", "DATABASE_URL").close()
    folder = tmp_path / "folder.db"
    folder.mkdir()
    with pytest.raises(ServerError, match="is not a file"):
        open_database(f"sqlite:///{folder}", "DATABASE_URL")


@pytest.mark.parametrize("blocked", ["data/server.lock", "data/runs", "data/uploads", "data/configs", "models"])
def test_a_path_of_the_wrong_kind_is_named(tmp_path: Path, blocked: str) -> None:
    path = tmp_path / blocked
    path.parent.mkdir(exist_ok=True)
    if path.suffix:
        path.mkdir()
    else:
        path.write_text("theirs")
    settings = settings_in(tmp_path)
    with pytest.raises(ServerError, match=f"{path} cannot be used"), sole_server(settings.lock_file):
        make_folders(settings)


@pytest.fixture
def folder_open_to_all() -> Iterator[Path]:
    """Return a folder that every user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user's")
@pytest.mark.parametrize("blocked", ["data/server.lock", "data/helper.log", "data/runs", "models"])
def test_a_folder_of_another_user_is_one_error(folder_open_to_all: Path, blocked: str) -> None:
    settings = settings_in(folder_open_to_all)
    for folder in (settings.data_dir, settings.runs_dir, settings.models_dir):
        folder.mkdir()
        os.chown(folder, 65534, 65534)
    path = folder_open_to_all / blocked
    path.touch() if path.suffix else os.chown(path, 0, 0)
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            with sole_server(settings.lock_file):
                make_folders(settings)
        except ServerError as error:
            expected = f"DATA_DIR: {path} cannot be used: Permission denied; its owner is root"
            os._exit(0 if error.message.replace("MODELS_DIR", "DATA_DIR").startswith(expected) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_folder_shared_with_others_keeps_its_permissions(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.runs_dir.mkdir(parents=True)
    settings.runs_dir.chmod(0o775)
    make_folders(settings)
    assert stat.S_IMODE(settings.runs_dir.stat().st_mode) == 0o775
    assert stat.S_IMODE(settings.uploads_dir.stat().st_mode) == 0o700
