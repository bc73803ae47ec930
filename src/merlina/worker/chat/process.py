"""`python -m merlina.worker.chat`: holds the model that answers chat requests.

Each line of standard input is a JSON object: {"id", "op", "args"} is an operation of `merlina.schemas.operations`,
carried out one after the other; {"cancel": id} may arrive at any time. For each operation the process writes any number
of {"event"}, then {"result"} or {"error": {"kind", "message"}}. It exits as soon as its input ends. The output of
libraries goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from setproctitle import setproctitle

from merlina.schemas.operations import AnswerMessages, LoadChatModel
from merlina.worker.helper.process import as_reply

OPERATIONS = (LoadChatModel, AnswerMessages)
_BY_NAME = {kind.name: kind for kind in OPERATIONS}


class _Calls:
    """The calls in order of arrival, and the id of the call that was cancelled last."""

    def __init__(self) -> None:
        self.cancelled = 0
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="calls", daemon=True).start()

    def next(self) -> dict[str, Any]:
        return self._waiting.get()

    def _listen(self) -> None:
        for line in sys.stdin:
            call = json.loads(line)
            if "cancel" in call:
                self.cancelled = call["cancel"]
            else:
                self._waiting.put(call)
        os._exit(0)


class _Session:
    """The model, once it is loaded. Its module takes seconds to import."""

    def __init__(self) -> None:
        self._model: Any = None

    def carry_out(
        self, operation: LoadChatModel | AnswerMessages, send: Callable[[Any], None], is_cancelled: Callable[[], bool]
    ) -> Any:
        """Carry out either operation and return its result."""
        if isinstance(operation, AnswerMessages):
            return self._model.answer(operation, send, is_cancelled)
        from merlina.worker.chat.model import ChatModel

        self._model = ChatModel.load(operation)
        return self._model.memory_mb()


def main() -> None:
    setproctitle("merlina chat")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    calls, session = _Calls(), _Session()
    while True:
        _handle(calls.next(), calls, session, send)


def _handle(call: dict[str, Any], calls: _Calls, session: _Session, send: Callable[[dict[str, Any]], None]) -> None:
    number, kind = call["id"], _BY_NAME[call["op"]]

    def send_event(event: BaseModel) -> None:
        send({"event": event.model_dump(mode="json")})

    try:
        operation = kind.model_validate(call["args"])
        result = session.carry_out(operation, send_event, lambda: calls.cancelled == number)
        send({"result": kind.result_type().dump_python(result, mode="json")})
    except Exception as error:
        send(as_reply(error))
