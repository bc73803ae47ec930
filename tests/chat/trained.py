"""A model that was really trained, and what it and its base are to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merlina.executors.chat_process import Admission, ChatOrder, Claim
from tests.harness import Server, pairs_file, training_config

QUESTION = "What is 3 plus 3?"
ADMITTED = Admission(lambda: Claim(None, 1), lambda _: None)


@dataclass(frozen=True)
class Trained:
    """A completed job, whose model answers otherwise than its base."""

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

    def order(self) -> ChatOrder:
        return ChatOrder(self.job_id, 1, str(self.folder), self.config, True, False, None)

    def ask(self, content: str = QUESTION, **changes: Any) -> dict[str, Any]:
        """A greedy request; `changes` go over it."""
        messages = [{"role": "user", "content": content}]
        return {"job_id": self.job_id, "messages": messages, "temperature": 0, "max_new_tokens": 20, **changes}


def reference_answer(model: Any, tokenizer: Any, messages: Sequence[dict[str, str]], tokens: int) -> str:
    """The greedy answer by forward passes of the whole text, one for each token, and the tokenizer's own template."""
    import torch

    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    drawn: list[int] = []
    while len(drawn) < tokens and drawn[-1:] != [tokenizer.eos_token_id]:
        with torch.no_grad():
            drawn.append(int(model(torch.tensor([ids + drawn])).logits[0, -1].argmax()))
    return str(tokenizer.decode(drawn, skip_special_tokens=True)).lstrip()
