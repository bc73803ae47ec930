"""Version of this code, for the build and the running package alike.

A tag `v1.2.3` is version 1.2.3, and the commits after it are development versions of the next one. Wheels and source
archives contain the version in `_built.py`, which the build writes; a clone derives it from git. The build executes
this file on its own, so it imports nothing else of the package.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

# The next release. Its tag is `v` and this number.
_NEXT = "0.2.0"
_BUILT = Path(__file__).with_name("_built.py")
_ROOT = Path(__file__).parents[2]
_SHORT_COMMIT = 10


class Version(NamedTuple):
    """`number` follows PEP 440; `commit` is None if neither git nor the build knows it."""

    number: str
    commit: str | None

    def __str__(self) -> str:
        return f"{self.number} (commit {self.commit[:_SHORT_COMMIT]})" if self.commit else self.number


@functools.cache
def current() -> Version:
    """Return the version of this code, determined once per process."""
    if _BUILT.is_file():
        found = dict(re.findall(r'^(\w+) = "(.*)"$', _BUILT.read_text("utf-8"), re.MULTILINE))
        return Version(found.get("NUMBER", f"{_NEXT}.dev0"), found.get("COMMIT") or None)
    if not (_ROOT / ".git").exists() or (commit := _git("rev-parse", "HEAD")) is None:
        return Version(f"{_NEXT}.dev0", None)
    return Version(_number(commit), commit)


def as_module(version: Version) -> str:
    """Return the text of `_built.py`."""
    return f'NUMBER = "{version.number}"\nCOMMIT = "{version.commit or ""}"\n'


def _number(commit: str) -> str:
    described = re.fullmatch(
        r"v(\d+(?:\.\d+)*)-(\d+)-g\w+", _git("describe", "--tags", "--long", "--match=v[0-9]*") or ""
    )
    local = f"g{commit[:_SHORT_COMMIT]}"
    if described is None:
        return f"{_NEXT}.dev{_git('rev-list', '--count', 'HEAD') or 0}+{local}"
    tagged, commits = described.groups()
    return tagged if commits == "0" else f"{_after(tagged)}.dev{commits}+{local}"


def _after(tagged: str) -> str:
    """Return the next release if its number is higher than the tag's, otherwise the tag's next patch."""
    parts = [int(part) for part in tagged.split(".")]
    return (
        _NEXT if [int(part) for part in _NEXT.split(".")] > parts else ".".join(map(str, [*parts[:-1], parts[-1] + 1]))
    )


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in this file's repository; None if it fails."""
    # Variables such as GIT_DIR, which hooks set, would select another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        command = ["git", "-C", str(_ROOT), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
