"""A trained model and its base, answering prompts that are formatted and encoded as in the run that trained it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from merlina.data.pairs import Message, Pair
from merlina.errors import ConflictError, InvalidRequestError
from merlina.schemas.chat import Sampling, Side
from merlina.schemas.training import TrainingConfig
from merlina.training.models.loading import ModelSpec, load_model, load_tokenizer, readable_errors, training_device
from merlina.worker.chat.detokenizer import TextPieces
from merlina.worker.encoding import PairEncoder
from merlina.worker.resource_errors import memory_short_of

_MB = 1024**2
# Longer than any prompt, which is never cut here: a model that has no more positions says so instead.
_NO_LIMIT = 2**40


@dataclass(frozen=True)
class _Prompt:
    """`end` is the token that ended the answers in training, where the format has one."""

    text: str
    ids: list[int]
    end: int | None


@dataclass
class ChatModel:
    """`tuned` is a PeftModel whose adapter is switched off for the base's answers, or a whole model beside `base`."""

    tuned: Any
    base: Any | None
    tokenizer: Any
    encoder: PairEncoder
    ends: frozenset[int]

    @staticmethod
    def load(
        model_dir: str, config: dict[str, Any], token: str | None, with_base: bool, trust_remote_code: bool
    ) -> ChatModel:
        """The model that a run saved in `model_dir`, held as in the run.

        Raises ModelError, or ConflictError where memory doesn't suffice.
        """
        training = TrainingConfig.model_validate(config)
        tokenizer = load_tokenizer(model_dir, None, trust_remote_code)
        encoder = PairEncoder(tokenizer, model_dir, training.dataset.format, _NO_LIMIT, _NO_LIMIT - 1)
        with _out_of_memory_in_words(), tempfile.TemporaryDirectory() as scratch:

            def held_as_trained(name: str) -> PreTrainedModel:
                weight_bits, attention = training.weight_bits, training.attn_implementation
                spec = ModelSpec(name, training.dtype, weight_bits, attention, Path(scratch), token, trust_remote_code)
                return load_model(spec).eval()

            if (Path(model_dir) / "adapter_config.json").is_file():
                model = held_as_trained(training.base_model)
                ends = _end_tokens(model, tokenizer)
                with readable_errors(model_dir):
                    return ChatModel(PeftModel.from_pretrained(model, model_dir).eval(), None, tokenizer, encoder, ends)
            tuned = held_as_trained(model_dir)
            ends = _end_tokens(tuned, tokenizer)
            base = held_as_trained(training.base_model) if with_base else None
            if base is not None:
                ends |= _end_tokens(base, tokenizer)
            return ChatModel(tuned, base, tokenizer, encoder, ends)

    def facts(self) -> dict[str, Any]:
        """What it holds, in MiB: of the GPU, or of RAM where it is on the CPU."""
        on_gpu = training_device().type == "cuda"
        held = torch.cuda.memory_reserved() if on_gpu else psutil.Process().memory_info().rss
        return {"memory_mb": round(held / _MB)}

    def answer(
        self,
        tell: Callable[[dict[str, Any]], None],
        cancelled: Callable[[], bool],
        side: Side,
        messages: list[dict[str, str]],
        sampling: dict[str, Any],
    ) -> dict[str, Any]:
        """Tells the prompt, then the answer piece by piece; returns why it ended.

        Raises UnusableRowError or InvalidRequestError for a conversation that the format or the model can't hold.
        """
        began = time.monotonic()
        given = Sampling.model_validate(sampling)
        prompt = self._prompt([Message(message["role"], message["content"]) for message in messages])
        room = self._room(len(prompt.ids))
        tell({"type": "begin", "prompt": prompt.text, "prompt_tokens": len(prompt.ids)})
        ends = self.ends | ({prompt.end} if prompt.end is not None else set())
        watch = _Watch(tell, cancelled, TextPieces(self.tokenizer), len(prompt.ids))
        with self._asked(side) as model, _out_of_memory_in_words():
            self._generate(model, prompt, given, min(given.max_new_tokens, room), ends, watch)
        watch.tell_rest()
        return {
            "reason": _reason(watch, given, ends),
            "tokens": len(watch.ids),
            "seconds": round(time.monotonic() - began, 3),
            **self.facts(),
        }

    def _prompt(self, turns: Sequence[Message]) -> _Prompt:
        """By way of a pair, as in training; what two different answers both end with is the format's end token."""
        made = self.encoder.encode(Pair(tuple(turns), "a", "b"))
        chosen, rejected = made.tokens.chosen[-1], made.tokens.rejected[-1]
        return _Prompt(made.text.prompt, made.tokens.prompt, chosen if chosen == rejected else None)

    def _room(self, prompt_tokens: int) -> int:
        """Tokens that the model has positions for after the prompt. Raises InvalidRequestError without any."""
        positions = getattr(self.tuned.config.get_text_config(), "max_position_embeddings", None) or _NO_LIMIT
        if prompt_tokens >= positions:
            raise InvalidRequestError(
                f"messages: they are {prompt_tokens:,} tokens, and the model has {positions:,} positions; "
                "leave out earlier turns"
            )
        return int(positions - prompt_tokens)

    @contextlib.contextmanager
    def _asked(self, side: Side) -> Iterator[Any]:
        if side == "tuned":
            yield self.tuned
        elif isinstance(self.tuned, PeftModel):
            with self.tuned.disable_adapter():
                yield self.tuned
        else:
            yield self.base

    @torch.no_grad()
    def _generate(
        self, model: Any, prompt: _Prompt, given: Sampling, longest: int, ends: frozenset[int], watch: _Watch
    ) -> None:
        ids = torch.tensor([prompt.ids], device=model.device)
        how: dict[str, Any] = {"do_sample": False}
        if given.temperature > 0:
            how = {"do_sample": True, "temperature": given.temperature, "top_p": given.top_p, "top_k": 0}
        torch.manual_seed(given.seed)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=longest,
            eos_token_id=sorted(ends),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([watch]),
            **how,
        )


@dataclass(eq=False)
class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Sees each token as it is drawn: tells its text, and ends the answer where nobody wants it any more."""

    tell: Callable[[dict[str, Any]], None]
    cancelled: Callable[[], bool]
    pieces: TextPieces
    prompt_tokens: int
    ids: list[int] = field(default_factory=list)

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """`input_ids` (1, tokens so far) → (1,), whether to end."""
        self.ids.append(int(input_ids[0, -1]))
        self.tell({"type": "text", "text": self.pieces.add(self.ids[-1])})
        return torch.tensor([self.cancelled()], device=input_ids.device)

    def tell_rest(self) -> None:
        self.tell({"type": "text", "text": self.pieces.rest()})


def _reason(watch: _Watch, given: Sampling, ends: frozenset[int]) -> str:
    if watch.ids and watch.ids[-1] in ends:
        return "end_token"
    return "max_new_tokens" if len(watch.ids) >= given.max_new_tokens else "max_positions"


def _end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The model's own, before its other habits of drawing tokens are taken off: both sides draw as they are told."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    model.generation_config = GenerationConfig()
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


@contextlib.contextmanager
def _out_of_memory_in_words() -> Iterator[None]:
    """Raises ConflictError."""
    try:
        yield
    except Exception as error:
        place = memory_short_of(error)
        if place is None:
            raise
        raise ConflictError(f"The model needs more {place} than is free now; ask again when there is more") from error
