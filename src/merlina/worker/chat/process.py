"""`python -m merlina.worker.chat`: holds the model that answers chat requests.

One JSON object a line comes in: {"id", "op": "load" or "answer", "args"}, answered one after the other, or
{"cancel": id} at any time. Any number of {"event"} go out for each question, then {"result"} or {"error": {"kind",
"message"}}. It ends at once, whatever it does, when its input does. What libraries print goes to standard error.
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

Tell = Callable[[dict[str, Any]], None]


class _Questions:
    """What is asked, in order; and which question is not to be answered any further."""

    def __init__(self) -> None:
        self.cancelled = 0
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="questions", daemon=True).start()

    def next(self) -> dict[str, Any]:
        return self._waiting.get()

    def _listen(self) -> None:
        for line in sys.stdin:
            question = json.loads(line)
            if "cancel" in question:
                self.cancelled = question["cancel"]
            else:
                self._waiting.put(question)
        os._exit(0)


class _Session:
    """The model, once it is loaded. Its module imports for seconds."""

    def __init__(self) -> None:
        self._model: Any = None

    def answer(self, question: dict[str, Any], tell: Tell, cancelled: Callable[[], bool]) -> Any:
        """The result of either operation."""
        if question["op"] == "load":
            from merlina.worker.chat.model import ChatModel

            self._model = ChatModel.load(**question["args"])
            return self._model.facts()
        return self._model.answer(tell, cancelled, **question["args"])


def main() -> None:
    setproctitle("merlina chat")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    questions, session = _Questions(), _Session()
    while True:
        _handle(questions.next(), questions, session, say)


def _handle(question: dict[str, Any], questions: _Questions, session: _Session, say: Tell) -> None:
    number = question["id"]
    try:
        result = session.answer(question, lambda event: say({"event": event}), lambda: questions.cancelled == number)
        say({"result": result})
    except Exception as error:
        say(as_reply(error))
