"""NOTICE names every third-party package in the page with its license."""

from __future__ import annotations

import json
import re
from pathlib import Path

import merlina

ROOT = Path(__file__).parents[2]
STATIC = Path(merlina.__file__).parent / "api/static"


def licenses() -> dict[str, str]:
    """Return the license texts in NOTICE by package."""
    line = "=" * 100
    parts = re.split(rf"\n{line}\n(.+)\n{line}\n", (ROOT / "NOTICE").read_text("utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_notice_contains_the_license_of_every_bundled_package() -> None:
    bundled = json.loads((STATIC / "bundled.json").read_text())
    assert {"svelte", "uplot", "@fontsource-variable/fraunces"} <= set(bundled)
    assert sorted(licenses()) == bundled, "run `python ui/notice.py`"
    for name, text in licenses().items():
        kind = "SIL OPEN FONT LICENSE Version 1.1" if name.startswith("@fontsource") else "Permission is hereby granted"
        assert kind in text, name
        assert "Copyright" in text, name


def test_every_bundled_font_comes_from_a_package_in_notice() -> None:
    fonts = [path.name for path in (STATIC / "assets").iterdir() if path.suffix in (".woff2", ".woff", ".ttf", ".otf")]
    assert fonts
    named = [name.rpartition("/")[2] for name in licenses()]
    assert not [font for font in fonts if not any(font.startswith(f"{name}-") for name in named)]
