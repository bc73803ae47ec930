"""`python -m merlina.worker.helper`: does for the server what needs transformers or datasets.

One JSON object a line comes in, {"id", "op", "args"}; one goes out, {"id", "result"} or {"id", "error": {"kind",
"message"}}. It ends when its input does. What libraries print goes to standard error.
"""

from __future__ import annotations

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


def _answer(operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": OPERATIONS[operation](**arguments)}
    except MerlinaError as error:
        return {"error": {"kind": type(error).__name__, "message": error.message}}
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        return {"error": {"kind": HelperError.__name__, "message": f"{type(error).__name__}: {first_line}"}}


def _preview_rows(**arguments: Any) -> Any:
    from merlina.worker.helper_previews import rows

    return rows(**arguments)


def _preview_formatted(**arguments: Any) -> Any:
    from merlina.worker.helper_previews import formatted

    return formatted(**arguments)


def _generate(**arguments: Any) -> Any:
    from merlina.worker.helper_generation import generate

    return generate(**arguments)


# The modules behind these import for seconds, so each is taken in at its first use.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "preview_rows": _preview_rows,
    "preview_formatted": _preview_formatted,
    "generate": _generate,
}


if __name__ == "__main__":
    main()
