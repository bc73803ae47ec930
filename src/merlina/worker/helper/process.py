"""`python -m merlina.worker.helper`: does for the server what reads rows or needs transformers or datasets.

One JSON object a line comes in, {"id", "op", "args", "memory_mb", "hub_problem"}. Any number of {"id", "phase"} go out,
then {"id", "result"} or {"id", "error": {"kind", "message"}}. `memory_mb` limits the memory that the call may take,
`hub_problem` says why the Hub can't be asked now. It ends when its input does. What libraries print goes to standard
error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from huggingface_hub import constants
from setproctitle import setproctitle

from merlina.errors import HelperError, MerlinaError, first_line, shorten
from merlina.hub_errors import HUB_PROBLEM
from merlina.worker.helper.phases import PHASES, Phase
from merlina.worker.resource_limits import memory_headroom

_LONGEST_FOREIGN_MESSAGE = 300


def main() -> None:
    setproctitle("merlina helper")
    _take_hub_settings()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)

        def say(content: dict[str, Any], number: int = request["id"]) -> None:
            answers.write(json.dumps({"id": number, **content}) + "\n")
            answers.flush()

        PHASES.report = lambda phase, say=say: say({"phase": _as_json(phase)})
        say(_answer(request))


def _take_hub_settings() -> None:
    """The Hub's libraries read the environment while they are imported: in a forked process, before it was ours."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    constants.HF_HUB_OFFLINE = offline
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if os.environ.get(name, "").isdigit():
            setattr(constants, name, int(os.environ[name]))
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = offline


def as_reply(error: Exception) -> dict[str, Any]:
    """What went wrong, so that the server can raise the same error of our tree."""
    if isinstance(error, MerlinaError):
        return {"error": {"kind": type(error).__name__, "message": error.message}}
    message = shorten(f"{type(error).__name__}: {first_line(error)}", _LONGEST_FOREIGN_MESSAGE)
    return {"error": {"kind": HelperError.__name__, "message": message}}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    HUB_PROBLEM.set(request.get("hub_problem"))
    memory_mb = request.get("memory_mb")
    try:
        with memory_headroom(memory_mb) if memory_mb else contextlib.nullcontext():
            return {"result": OPERATIONS[request["op"]](**request["args"])}
    except MemoryError:
        return as_reply(HelperError(f"{request['op']} takes more memory than it may, so it was ended"))
    except Exception as error:
        return as_reply(error)


def _as_json(phase: Phase) -> dict[str, Any]:
    return {"name": phase.name, "seconds": phase.seconds, "kind": phase.error.__name__}


def _first_use(module: str, function: str) -> Callable[..., Any]:
    """The function, whose module imports for seconds and so is taken in when it is first asked for."""

    def call(**arguments: Any) -> Any:
        return getattr(importlib.import_module(f"merlina.worker.helper.{module}"), function)(**arguments)

    return call


OPERATIONS: dict[str, Callable[..., Any]] = {
    "preview_rows": _first_use("rows", "first_rows"),
    "count_rows": _first_use("rows", "count"),
    "parse_upload": _first_use("rows", "parse"),
    "look_at_rows": _first_use("rows", "look"),
    "compare_rows": _first_use("rows", "compare"),
    "preview_formatted": _first_use("previews", "formatted"),
    "count_hub_rows": _first_use("previews", "hub_rows"),
    "tokenizer_facts": _first_use("inspection", "tokenizer_facts"),
    "model_facts": _first_use("inspection", "model_facts"),
    "inspect_run": _first_use("inspection", "inspect_run"),
    "product_rate": _first_use("speed", "product_rate"),
}
