"""`python -m merlina.worker.chat`: holds the model that answers chat requests.

Each line of standard input is a JSON object: {"id", "op": "load" or "answer", "args"}, carried out one after the other,
or {"cancel": id} at any time. For each request the process writes any number of {"event"}, then {"result"} or
{"error": {"kind", "message"}}. It exits as soon as its input ends. The output of libraries goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

from setproctitle import setproctitle

from merlina.worker.helper.process import as_reply

Send = Callable[[dict[str, Any]], None]


class _Requests:
    """The requests in order of arrival, and the id of the request that was cancelled last."""

    def __init__(self) -> None:
        self.cancelled = 0
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="requests", daemon=True).start()

    def next(self) -> dict[str, Any]:
        return self._waiting.get()

    def _listen(self) -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if "cancel" in request:
                self.cancelled = request["cancel"]
            else:
                self._waiting.put(request)
        os._exit(0)


class _Session:
    """The model, once it is loaded. Its module takes seconds to import."""

    def __init__(self) -> None:
        self._model: Any = None

    def carry_out(self, request: dict[str, Any], send: Send, is_cancelled: Callable[[], bool]) -> Any:
        """Carry out either operation and return its result."""
        if request["op"] == "load":
            from merlina.worker.chat.model import ChatModel

            self._model = ChatModel.load(**request["args"])
            return self._model.facts()
        return self._model.answer(send, is_cancelled, **request["args"])


def main() -> None:
    setproctitle("merlina chat")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    requests, session = _Requests(), _Session()
    while True:
        _handle(requests.next(), requests, session, send)


def _handle(request: dict[str, Any], requests: _Requests, session: _Session, send: Send) -> None:
    number = request["id"]
    try:
        result = session.carry_out(request, lambda event: send({"event": event}), lambda: requests.cancelled == number)
        send({"result": result})
    except Exception as error:
        send(as_reply(error))
