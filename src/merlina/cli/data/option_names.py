"""The settings of a run that `merlina data` has as options, by which its messages name them."""

from __future__ import annotations

import re

# In quotes, it is the name of a column or a file.
_SETTING = re.compile(
    r"(?<![\w.'\"-])(?:source\.(?P<source>[a-z_]+)|(?P<setting>training_mode|row_format|max_samples|column_mapping))"
    r"(?![\w'\"])(?P<field>\.(?=\w))?"
)
_MAPPING = re.compile(r"(?<![\w'\"])column_mapping \{\"(?P<column>[^\"]*)\": \"(?P<name>\w+)\"\}")
_OPTIONS = {"column_mapping": "--map", "url": "FILE", "repo_id": "FILE", "file_path": "FILE"}


def with_option_names(text: str) -> str:
    """Return a message with options instead of settings: "set source.split to test" becomes "set --split to test"."""
    return _SETTING.sub(_option, _MAPPING.sub(r"--map '\g<column>=\g<name>'", text))


def _option(found: re.Match[str]) -> str:
    name = found["source"] or found["setting"]
    option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
    return f"{option} " if found["field"] else option
