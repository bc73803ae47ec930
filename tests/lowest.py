"""Print the lowest version of each direct dependency as pip constraints, for `make test-lowest`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
_REQUIREMENT = re.compile(r"([\w-]+)(?:\[[\w,]+\])?>=([\w.]+)")


def lowest_versions() -> list[str]:
    """`name==version` for each. Raises ValueError where one has no lower bound."""
    dependencies = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    found = [(requirement, _REQUIREMENT.match(requirement)) for requirement in dependencies]
    if unbounded := [requirement for requirement, match in found if match is None]:
        raise ValueError(f"no lower bound: {', '.join(unbounded)}")
    return [f"{match[1]}=={match[2]}" for _, match in found if match]


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
