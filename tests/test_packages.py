"""Versions of a clone, a source archive and a wheel, and the contents of packages."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import merlina

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STATIC = Path(merlina.__file__).parent / "api/static"
_SHOW = "from merlina.version import current; print(current().number, current().commit)"
_IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def run(*command: str, cwd: Path, **environment: str) -> str:
    variables = {**os.environ, **_IDENTITY, **environment}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def shown(source: Path, cwd: Path) -> list[str]:
    """Return version and commit as reported by the package in `source`."""
    return run(sys.executable, "-c", _SHOW, cwd=cwd, PYTHONPATH=str(source)).split()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one untagged commit of this one's files, and with the built page."""
    folder = tmp_path_factory.mktemp("clone") / "merlina"
    folder.mkdir()
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    run("git", "init", "-q", cwd=folder)
    commit(folder)
    run("cp", "-r", str(STATIC), str(folder / "src/merlina/api/static"), cwd=folder)
    return folder


def commit(folder: Path) -> str:
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-q", "--allow-empty", "-m", "step", cwd=folder)
    return run("git", "rev-parse", "HEAD", cwd=folder)


def test_a_clone_changes_its_version_with_every_commit_and_tag(clone: Path, tmp_path: Path) -> None:
    first = shown(clone / "src", tmp_path)
    head = commit(clone)
    assert shown(clone / "src", tmp_path) == [f"0.2.0.dev2+g{head[:10]}", head] != first
    run("git", "tag", "v0.9.4", cwd=clone)
    assert shown(clone / "src", tmp_path) == ["0.9.4", head]
    head = commit(clone)
    assert shown(clone / "src", tmp_path) == [f"0.9.5.dev1+g{head[:10]}", head]
    run("git", "tag", "-d", "v0.9.4", cwd=clone)


def test_packages_contain_their_commit_the_page_and_licenses(clone: Path, tmp_path: Path) -> None:
    number, head = shown(clone / "src", tmp_path)
    run(sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist"), cwd=clone)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    (tmp_path / "archive").mkdir()
    run("tar", "-xzf", str(archive), "-C", str(tmp_path / "archive"), cwd=tmp_path)
    (source,) = (tmp_path / "archive").iterdir()
    assert shown(source / "src", tmp_path) == [number, head]
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "second"), cwd=source)
    wheels = [*(tmp_path / "dist").glob("*.whl"), *(tmp_path / "second").glob("*.whl")]
    for number_of_wheel, wheel in enumerate(wheels):
        unpacked = tmp_path / f"wheel{number_of_wheel}"
        with zipfile.ZipFile(wheel) as contents:
            contents.extractall(unpacked)
        assert shown(unpacked, tmp_path) == [number, head]
        (facts,) = unpacked.glob("*.dist-info")
        assert Parser().parsestr((facts / "METADATA").read_text())["Version"] == number
        assert (facts / "licenses/NOTICE").read_bytes() == (ROOT / "NOTICE").read_bytes()
        assert (unpacked / "merlina/api/static/index.html").is_file()
    assert len(wheels) == 2
    assert (source / "NOTICE").is_file()


def test_the_command_shows_version_and_commit() -> None:
    shown = run(sys.executable, "-m", "merlina.cli.main", "--version", cwd=ROOT)
    assert shown.startswith(f"merlina {merlina.__version__} (commit ")


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [requirement for requirement in project["dependencies"] if ">=" not in requirement]


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(merlina, name) for name in merlina.__all__)
