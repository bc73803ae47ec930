"""Write NOTICE: the license texts of the fonts and JavaScript packages in the built page.

Run `python ui/notice.py` after `python ui/hatch_build.py` when the page bundles a new package.
"""

from __future__ import annotations

import json
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_BUNDLED = _ROOT / "src/merlina/api/static/bundled.json"
_HEAD = """\
Merlina is licensed under the Apache License 2.0; see LICENSE. Its web page (`merlina/api/static` in the installed
package) contains the following third-party software, under the licenses below.
"""


def notice() -> str:
    """Return the text of NOTICE. Raises StopIteration for a package without a license file."""
    names: list[str] = json.loads(_BUNDLED.read_text())
    return _HEAD + "".join(f"\n{'=' * 100}\n{name}\n{'=' * 100}\n\n{_license(name)}\n" for name in names)


def _license(name: str) -> str:
    folder = _ROOT / "ui/node_modules" / name
    file = next(path for path in sorted(folder.iterdir()) if path.name.lower().startswith("licen"))
    return "\n".join(line.rstrip() for line in file.read_text("utf-8").strip().splitlines())


if __name__ == "__main__":
    (_ROOT / "NOTICE").write_text(notice(), "utf-8")
