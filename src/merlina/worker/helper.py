"""`python -m merlina.worker.helper`: does for the server what needs transformers or datasets.

One JSON object a line comes in, {"id", "op", "args"}; one goes out, {"id", "result"} or {"id", "error": {"kind",
"message"}}. It ends when its input does. What libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from setproctitle import setproctitle

from merlina.errors import HelperError, MerlinaError


def main() -> None:
    setproctitle("merlina helper")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps({"id": request["id"], **_answer(request["op"], request["args"])}) + "\n")
        answers.flush()


def as_reply(error: Exception) -> dict[str, Any]:
    """What went wrong, so that the server can raise the same error of our tree."""
    if isinstance(error, MerlinaError):
        return {"error": {"kind": type(error).__name__, "message": error.message}}
    first_line = next(iter(str(error).strip().splitlines()), "no message")
    return {"error": {"kind": HelperError.__name__, "message": f"{type(error).__name__}: {first_line}"}}


def _answer(operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": OPERATIONS[operation](**arguments)}
    except Exception as error:
        return as_reply(error)


def _first_use(module: str, function: str) -> Callable[..., Any]:
    """The function, whose module imports for seconds and so is taken in when it is first asked for."""

    def call(**arguments: Any) -> Any:
        return getattr(importlib.import_module(f"merlina.worker.{module}"), function)(**arguments)

    return call


OPERATIONS: dict[str, Callable[..., Any]] = {
    "preview_rows": _first_use("helper_previews", "rows"),
    "preview_formatted": _first_use("helper_previews", "formatted"),
    "count_hub_rows": _first_use("helper_previews", "hub_rows"),
    "tokenizer_facts": _first_use("helper_inspection", "tokenizer_facts"),
    "model_facts": _first_use("helper_inspection", "model_facts"),
    "inspect_run": _first_use("helper_inspection", "inspect_run"),
    "product_rate": _first_use("helper_speed", "product_rate"),
    "generate": _first_use("helper_generation", "generate"),
}


if __name__ == "__main__":
    main()
