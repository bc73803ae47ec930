"""A trained model, and the answers that it and its base model must give."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merlina.chat.loading import ModelLoader
from merlina.executors.chat_process import AnswerEvent, ChatModelSpec, ChatProcess, Claim
from merlina.schemas.chat import ChatMessage, Sampling, Side
from merlina.schemas.operations import AnswerMessages, LoadChatModel
from merlina.schemas.training.config import TrainingConfig
from tests.harness import Server, pairs_file, training_config

QUESTION = "What is 3 plus 3?"


def load(
    process: ChatProcess,
    spec: ChatModelSpec,
    claim: Claim = Claim(None, 1),  # noqa: B008
    admit: Callable[[Claim], None] = lambda _: None,
    closed: threading.Event | None = None,
    *,
    force: bool = False,
) -> None:
    """Load a model as the service does, with a given claim and admission."""
    with process.turn(closed or threading.Event()):
        ModelLoader(process, lambda _: claim, admit).ensure_loaded(spec, force=force)


def answer(process: ChatProcess, spec: ChatModelSpec, question: AnswerMessages) -> Generator[AnswerEvent, None, None]:
    """Answer as the service does, without admission."""
    with process.turn(threading.Event()):
        ModelLoader(process, lambda _: Claim(None, 1), lambda _: None).ensure_loaded(spec)
        events = process.answer(question)
        try:
            yield from events
        finally:
            events.close()


@dataclass(frozen=True)
class Trained:
    """A completed job whose model answers differently from its base model."""

    server: Server
    job_id: str
    config: dict[str, Any]
    folder: Path

    @staticmethod
    def on(server: Server, base_model: Path, output_name: str, **changes: Any) -> Trained:
        pairs = pairs_file(server.root / "pairs.jsonl")
        config = training_config(base_model, pairs, output_name, max_steps=15, num_epochs=100, eval_steps=0)
        job_id = server.train({**config, "learning_rate": 0.03, **changes})
        assert server.until_ended(job_id).status == "completed"
        with server.client() as client:
            return Trained(server, job_id, client.config(job_id), server.root / "models" / output_name)

    def spec(self) -> ChatModelSpec:
        config = TrainingConfig.model_validate(self.config)
        loading = LoadChatModel(
            model_dir=self.folder, config=config, with_base=True, trust_remote_code=False, token=None
        )
        return ChatModelSpec(self.job_id, 1, loading)

    def question(self, side: Side, content: str = QUESTION, **sampling: Any) -> AnswerMessages:
        messages = [ChatMessage(role="user", content=content)]
        return AnswerMessages(job_id=self.job_id, side=side, messages=messages, sampling=Sampling(**sampling))

    def ask(self, content: str = QUESTION, **changes: Any) -> dict[str, Any]:
        """Return a greedy request, updated with `changes`."""
        messages = [{"role": "user", "content": content}]
        return {"job_id": self.job_id, "messages": messages, "temperature": 0, "max_new_tokens": 20, **changes}


def reference_answer(model: Any, tokenizer: Any, messages: Sequence[dict[str, str]], tokens: int) -> str:
    """Return the greedy answer by one forward pass over the whole text per token, with the tokenizer's template."""
    import torch

    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    drawn: list[int] = []
    while len(drawn) < tokens and drawn[-1:] != [tokenizer.eos_token_id]:
        with torch.no_grad():
            drawn.append(int(model(torch.tensor([ids + drawn])).logits[0, -1].argmax()))
    return str(tokenizer.decode(drawn, skip_special_tokens=True)).lstrip()
