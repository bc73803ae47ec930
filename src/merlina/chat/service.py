"""Chat with a job's model: load it within the memory that runs leave, and stream its answers."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from merlina.chat.loading import ModelLoader
from merlina.chat.memory import ChatMemory
from merlina.chat.served_models import has_adapter
from merlina.errors import BusyError, InvalidRequestError
from merlina.executors.chat_process import AnswerEvent, ChatModelSpec, ChatProcess, Claim
from merlina.executors.helper_pools import HelperPools
from merlina.jobs.commands import JobCommands
from merlina.preflight.memory_estimate import chat_memory_mb
from merlina.preflight.models import model_repos
from merlina.schemas.chat import AnswerText, ChatMessage, Sampling, Side
from merlina.schemas.operations import AnswerMessages, InspectModel, LoadChatModel
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.settings import Settings
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord


@dataclass(frozen=True)
class ChatService:
    """Operations of the chat routes. `closed` is set once the client has disconnected."""

    settings: Settings
    commands: JobCommands
    helpers: HelperPools
    chat_memory: ChatMemory
    chat_process: ChatProcess

    def load(self, job_id: str, closed: threading.Event, *, with_base: bool, force: bool) -> None:
        """Load a job's model unless it is loaded.

        Raises NotFoundError, InvalidRequestError if the job has no model, InsufficientMemoryError without `force`,
        ConflictError if the model is unloaded meanwhile, and BusyError.
        """
        spec = self._spec(self.commands.find(job_id), with_base=with_base)
        with self.chat_process.turn(closed):
            self._loader.ensure_loaded(spec, force=force)

    def answer(
        self,
        job_id: str,
        side: Side,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        closed: threading.Event,
        *,
        top_logprobs: int | None = None,
    ) -> Generator[AnswerEvent, None, None]:
        """Yield the answer of one side, piece by piece, loading the model first if necessary. Raises as `load`.

        With `top_logprobs`, an AnswerToken for each token as well.
        """
        spec = self._spec(self.commands.find(job_id), with_base=side == "base")
        # A Prompt is a Sampling with more fields.
        parameters = Sampling.model_validate(sampling.model_dump(include=set(Sampling.model_fields)))
        operation = AnswerMessages(
            job_id=job_id, side=side, messages=list(messages), sampling=parameters, top_logprobs=top_logprobs
        )
        with self.chat_process.turn(closed):
            self._loader.ensure_loaded(spec)
            events = self.chat_process.answer(operation)
            try:
                for event in events:
                    if closed.is_set():
                        raise BusyError("Client disconnected")
                    if not isinstance(event, AnswerText) or event.text:
                        yield event
            finally:
                events.close()

    @property
    def job_with_base(self) -> str | None:
        """The job of the model that is loaded together with its base model, if any."""
        spec = self.chat_process.status.spec
        return spec.job_id if spec is not None and spec.loading.with_base else None

    @property
    def _loader(self) -> ModelLoader:
        return ModelLoader(self.chat_process, self._plan, self.chat_memory.admit)

    def _spec(self, record: JobRecord, *, with_base: bool) -> ChatModelSpec:
        model_dir = self._model_dir(record)
        tokens = self.commands.folder(record.job_id).read_secrets()
        return ChatModelSpec(
            job_id=record.job_id,
            attempt=record.attempt,
            loading=LoadChatModel(
                model_dir=model_dir,
                config=read_stored_config(record.config, record.job_id),
                with_base=with_base or has_adapter(model_dir),
                trust_remote_code=self.settings.trust_remote_code,
                token=tokens.get("hf_token") or self.settings.hub_token(),
            ),
        )

    def _model_dir(self, record: JobRecord) -> Path:
        """Return the folder of a job's model. Raises InvalidRequestError if it is gone or has a later job's model."""
        if record.output_dir is None or not record.is_ended:
            raise InvalidRequestError(f"Job {record.job_id} is {record.state} and has no model to chat with")
        if not Path(record.output_dir).is_dir():
            raise InvalidRequestError(f"The model of {record.job_id} no longer exists in {record.output_dir}")
        with self.commands.database.read() as connection:
            last = jobs.owner_of_model(connection, record.output_dir)
        if last != record.job_id:
            raise InvalidRequestError(
                f"{record.output_dir} contains the model of the later job {last}; the model of {record.job_id} was "
                "moved to a folder beside it"
            )
        return Path(record.output_dir)

    def _plan(self, spec: ChatModelSpec) -> Claim:
        """Return the memory that the model would claim. Raises ModelError if the base model cannot be found."""
        loading = spec.loading
        is_adapter = has_adapter(loading.model_dir)
        name = loading.config.base_model if is_adapter else str(loading.model_dir)
        facts = self.helpers.call(
            InspectModel(model_name=name, token=loading.token, trust_remote_code=loading.trust_remote_code),
            model_repos(name, loading.trust_remote_code),
        )
        gpu = self.chat_memory.choose_gpu()
        copies = 2 if loading.with_base and not is_adapter else 1
        device = "cpu" if gpu is None else "cuda"
        return Claim(gpu, chat_memory_mb(loading.config, facts, device, copies))
