"""Loading a job's model and having it answer, within what runs leave of the memory."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from merlina.chat.memory import ChatMemory
from merlina.errors import BusyError, InvalidRequestError
from merlina.executors.chat_process import Admission, ChatOrder, ChatProcess, Claim
from merlina.executors.helper_pools import Helpers
from merlina.jobs.commands import JobCommands
from merlina.preflight.memory_estimate import chat_memory_mb
from merlina.preflight.models import model_repos
from merlina.schemas.chat import AnswerBegins, AnswerEnds, AnswerText, ChatMessage, Sampling, Side
from merlina.schemas.inspection import ModelFacts
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.settings import Settings
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord

Event = AnswerBegins | AnswerText | AnswerEnds


@dataclass(frozen=True)
class ChatService:
    """What routes ask of the chat_process, by job. `closed` is set where nobody waits for the answer any more."""

    settings: Settings
    commands: JobCommands
    helpers: Helpers
    chat_memory: ChatMemory
    chat_process: ChatProcess

    def load(self, job_id: str, closed: threading.Event, *, with_base: bool, force: bool) -> None:
        """Raises NotFoundError, InvalidRequestError (the job has no model) and InsufficientMemoryError."""
        order = self._order(self.commands.find(job_id), with_base=with_base)
        self.chat_process.load(order, self._admission(order, force=force), closed)

    def answer(
        self, job_id: str, side: Side, messages: Sequence[ChatMessage], sampling: Sampling, closed: threading.Event
    ) -> Generator[Event, None, None]:
        """What the side answers, from its beginning to its end; loads the model where it isn't. Raises as `load`."""
        order = self._order(self.commands.find(job_id), with_base=side == "base")
        arguments = {
            "side": side,
            "messages": [message.model_dump() for message in messages],
            "sampling": sampling.model_dump(include=set(Sampling.model_fields)),
        }
        events = self.chat_process.answer(order, self._admission(order, force=False), arguments, closed)
        try:
            for event in events:
                if closed.is_set():
                    raise BusyError("Nobody waits for the answer any more")
                if event["type"] == "begin":
                    yield AnswerBegins(job_id=job_id, side=side, **event)
                elif event["type"] == "end":
                    yield AnswerEnds(**event)
                elif event["text"]:
                    yield AnswerText(**event)
        finally:
            events.close()

    def _order(self, record: JobRecord, *, with_base: bool) -> ChatOrder:
        model_dir = self._model_dir(record)
        tokens = self.commands.folder(record.job_id).read_secrets()
        own = self.settings.hf_token
        return ChatOrder(
            job_id=record.job_id,
            attempt=record.attempt,
            model_dir=str(model_dir),
            config=read_stored_config(record.config, record.job_id).model_dump(mode="json"),
            with_base=with_base or _is_adapter(model_dir),
            trust_remote_code=self.settings.trust_remote_code,
            token=tokens.get("hf_token") or (own.get_secret_value() if own else None),
        )

    def _model_dir(self, record: JobRecord) -> Path:
        """Raises InvalidRequestError where the model isn't there, or is that of a later job."""
        if record.output_dir is None or not record.ended:
            raise InvalidRequestError(f"Job {record.job_id} is {record.state} and has no model to chat with")
        if not Path(record.output_dir).is_dir():
            raise InvalidRequestError(f"The model of {record.job_id} is gone from {record.output_dir}")
        with self.commands.database.read() as connection:
            last = jobs.last_to_save(connection, record.output_dir)
        if last != record.job_id:
            raise InvalidRequestError(
                f"{record.output_dir} holds what {last} trained later; the model of {record.job_id} is kept beside it"
            )
        return Path(record.output_dir)

    def _admission(self, order: ChatOrder, *, force: bool) -> Admission:
        return Admission(lambda: self._claim(order), self.chat_memory.admit, force)

    def _claim(self, order: ChatOrder) -> Claim:
        """Raises ModelError where the base can't be found."""
        config = read_stored_config(order.config, order.job_id)
        is_adapter = _is_adapter(Path(order.model_dir))
        name = config.base_model if is_adapter else order.model_dir
        facts = self.helpers.call(
            "model_facts",
            model_repos(name, order.trust_remote_code),
            model_name=name,
            token=order.token,
            trust_remote_code=order.trust_remote_code,
        )
        gpu = self.chat_memory.choose_gpu()
        copies = 2 if order.with_base and not is_adapter else 1
        device = "cpu" if gpu is None else "cuda"
        return Claim(gpu, chat_memory_mb(config, ModelFacts.model_validate(facts), device, copies))


def _is_adapter(model_dir: Path) -> bool:
    """Whether what was trained stands on its base, which is then there too."""
    return (model_dir / "adapter_config.json").is_file()
