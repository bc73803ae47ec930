"""`python -m merlina.worker.helper`: carries out the operations of `merlina.schemas.operations` for the server.

Each line of standard input is a call as a JSON object: {"id", "op", "args", "memory_mb", "hub_problem"}. The process
writes any number of {"id", "phase"} and {"id", "rows"}, then {"id", "result"} or {"id", "error": {"kind", "message"}}.
`memory_mb` limits the memory of the call, in MiB, and `hub_problem` states why the Hub is not available. The process
ends with its input. The output of libraries goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import Any

from huggingface_hub import constants
from setproctitle import setproctitle

from merlina.errors import HelperError, MerlinaError, first_line, shorten
from merlina.hub_errors import HUB_PROBLEM
from merlina.schemas import operations
from merlina.schemas.operations import Operation
from merlina.worker.helper.phases import PHASES, Phase
from merlina.worker.resource_limits import memory_headroom

_MAX_FOREIGN_MESSAGE = 300


def main() -> None:
    setproctitle("merlina helper")
    _apply_hub_settings()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        call = json.loads(line)

        def send(content: dict[str, Any], number: int = call["id"]) -> None:
            replies.write(json.dumps({"id": number, **content}) + "\n")
            replies.flush()

        PHASES.report = lambda phase, send=send: send({"phase": _as_json(phase)})
        PHASES.report_rows = lambda rows, send=send: send({"rows": rows})
        send(_carry_out(call))


def _apply_hub_settings() -> None:
    """Apply the environment again: the Hub's libraries read it while they are imported, possibly before it was set."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    constants.HF_HUB_OFFLINE = offline
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if os.environ.get(name, "").isdigit():
            setattr(constants, name, int(os.environ[name]))
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = offline


def as_reply(error: Exception) -> dict[str, Any]:
    """Return the reply from which the server raises the same MerlinaError."""
    if isinstance(error, MerlinaError):
        return {"error": {"kind": type(error).__name__, "message": error.message}}
    message = shorten(f"{type(error).__name__}: {first_line(error)}", _MAX_FOREIGN_MESSAGE)
    return {"error": {"kind": HelperError.__name__, "message": message}}


def _carry_out(call: dict[str, Any]) -> dict[str, Any]:
    """Carry out a call and return the reply: its result, or the error that it raised."""
    HUB_PROBLEM.set(call.get("hub_problem"))
    memory_mb = call.get("memory_mb")
    try:
        with memory_headroom(memory_mb) if memory_mb else contextlib.nullcontext():
            return {"result": _call(_BY_NAME[call["op"]], call["args"])}
    except MemoryError:
        return as_reply(HelperError(f"{call['op']} exceeded its memory limit and was ended"))
    except Exception as error:
        return as_reply(error)


def _as_json(phase: Phase) -> dict[str, Any]:
    return {"name": phase.name, "seconds": phase.seconds, "kind": phase.error.__name__}


def _call(kind: type[Operation[Any]], arguments: dict[str, Any]) -> Any:
    module = importlib.import_module(f"merlina.worker.helper.{OPERATIONS[kind]}")
    result = getattr(module, kind.name)(kind.model_validate(arguments))
    return kind.result_type().dump_python(result, mode="json")


# The module of each operation's function, which has the operation's name. Some take seconds to import, so each is
# imported when it is first needed.
OPERATIONS: dict[type[Operation[Any]], str] = {
    operations.PreviewRows: "rows",
    operations.CountRows: "rows",
    operations.ParseUpload: "rows",
    operations.ExamineRows: "rows",
    operations.CompareRows: "rows",
    operations.PreviewFormatted: "previews",
    operations.CountHubRows: "previews",
    operations.DescribeData: "data_report",
    operations.InspectTokenizer: "inspection",
    operations.InspectModel: "inspection",
    operations.InspectRun: "inspection",
    operations.MeasureMatrixSpeed: "speed",
}
_BY_NAME = {kind.name: kind for kind in OPERATIONS}
