"""A trained model and its base model, with prompts formatted and encoded as in the run that trained it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from merlina.data.conversation import Message, Pair, assistant
from merlina.domain.units import MIB
from merlina.errors import ConflictError, InvalidRequestError
from merlina.schemas.chat import AnswerBegins, AnswerEnds, EndReason, Sampling, Side
from merlina.schemas.datasets.config import DatasetFormat
from merlina.schemas.operations import AnswerMessages, FinishedAnswer, LoadChatModel
from merlina.training.device import training_device
from merlina.training.models.loading import ModelSpec, load_model, max_positions
from merlina.training.models.model_files import readable_errors
from merlina.training.models.tokenizer_loading import load_tokenizer
from merlina.worker.chat.answer_stream import AnswerEvent, AnswerStream, TokenLogprobs
from merlina.worker.chat.detokenizer import Detokenizer
from merlina.worker.chat.stop_texts import StopTexts
from merlina.worker.encoding import UNLIMITED, PairEncoder
from merlina.worker.resource_errors import exhausted_memory


@dataclass
class ChatModel:
    """A job's model with its tokenizer and the encoder of prompts.

    `tuned` is a PeftModel, which answers as the base model without its adapter, or a whole model beside `base`.
    """

    tuned: Any
    base: Any | None
    tokenizer: Any
    encoder: PairEncoder
    end_tokens: frozenset[int]

    @staticmethod
    def load(operation: LoadChatModel) -> ChatModel:
        """Load the model with the data types and quantization of its run. Raises as the operation states."""
        training, model_dir = operation.config, str(operation.model_dir)
        token, trust_remote_code = operation.token, operation.trust_remote_code
        tokenizer = load_tokenizer(model_dir, None, trust_remote_code)
        encoder = PairEncoder(tokenizer, model_dir, _chat_format(training.dataset.format, tokenizer))
        with _readable_memory_errors(), tempfile.TemporaryDirectory() as scratch:

            def load_as_trained(name: str) -> PreTrainedModel:
                weight_bits, attention = training.weight_bits, training.attn_implementation
                spec = ModelSpec(name, training.dtype, weight_bits, attention, Path(scratch), token, trust_remote_code)
                return load_model(spec).eval()

            if (operation.model_dir / "adapter_config.json").is_file():
                model = load_as_trained(training.base_model)
                end_tokens = _take_end_tokens(model, tokenizer)
                with readable_errors(model_dir):
                    return ChatModel(
                        PeftModel.from_pretrained(model, model_dir).eval(), None, tokenizer, encoder, end_tokens
                    )
            tuned = load_as_trained(model_dir)
            end_tokens = _take_end_tokens(tuned, tokenizer)
            base = load_as_trained(training.base_model) if operation.with_base else None
            if base is not None:
                end_tokens |= _take_end_tokens(base, tokenizer)
            return ChatModel(tuned, base, tokenizer, encoder, end_tokens)

    def memory_mb(self) -> int:
        """Return the memory that the process holds in MiB, on the GPU or, without one, in RAM."""
        on_gpu = training_device().type == "cuda"
        held = torch.cuda.memory_reserved() if on_gpu else psutil.Process().memory_info().rss
        return round(held / MIB)

    def answer(
        self,
        operation: AnswerMessages,
        send: Callable[[AnswerEvent], None],
        is_cancelled: Callable[[], bool],
    ) -> FinishedAnswer:
        """Send the prompt, then the answer in pieces of text, and return its end. Raises as the operation states."""
        began = time.monotonic()
        settings, side = operation.sampling, operation.side
        turns = tuple(Message(message.role, message.content) for message in operation.messages)
        # Encoded as part of a pair, as in training; only the prompt is used.
        pair = self.encoder.encode(Pair(turns, assistant("a"), None))
        prompt = pair.tokens.prompt
        max_new_tokens = min(settings.max_new_tokens, self._free_positions(len(prompt)))
        send(
            AnswerBegins(
                type="begin", job_id=operation.job_id, side=side, prompt=pair.text.prompt, prompt_tokens=len(prompt)
            )
        )
        end_token = self.encoder.end_token
        end_tokens = self.end_tokens | ({end_token} if end_token is not None else set())
        top = operation.top_logprobs
        logprobs = None if top is None else TokenLogprobs(self.tokenizer, top)
        stream = AnswerStream(
            send, is_cancelled, Detokenizer(self.tokenizer), StopTexts(settings.stop), end_tokens, logprobs
        )
        with self._model_of(side) as model, _readable_memory_errors():
            self._generate(model, prompt, settings, max_new_tokens, stream)
        stream.flush()
        end = AnswerEnds(
            type="end",
            reason=_reason(stream, settings),
            tokens=len(stream.ids),
            seconds=round(time.monotonic() - began, 3),
        )
        return FinishedAnswer(end=end, memory_mb=self.memory_mb())

    def _free_positions(self, prompt_tokens: int) -> int:
        """Return the number of positions after the prompt. Raises InvalidRequestError if there are none."""
        positions = max_positions(self.tuned.config) or UNLIMITED
        if prompt_tokens >= positions:
            raise InvalidRequestError(
                f"messages: they have {prompt_tokens:,} tokens, but the model has {positions:,} positions; "
                "leave out earlier turns"
            )
        return positions - prompt_tokens

    @contextlib.contextmanager
    def _model_of(self, side: Side) -> Iterator[Any]:
        """Yield the trained model or the base model."""
        if side == "tuned":
            yield self.tuned
        elif isinstance(self.tuned, PeftModel):
            with self.tuned.disable_adapter():
                yield self.tuned
        else:
            yield self.base

    @torch.no_grad()
    def _generate(
        self,
        model: Any,
        prompt: list[int],
        settings: Sampling,
        max_new_tokens: int,
        stream: AnswerStream,
    ) -> None:
        ids = torch.tensor([prompt], device=model.device)
        decoding: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            decoding = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        torch.manual_seed(settings.seed)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stream.end_tokens),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            # Custom processors see the logits before temperature and top_p are applied.
            logits_processor=LogitsProcessorList([] if stream.logprobs is None else [stream.logprobs]),
            stopping_criteria=StoppingCriteriaList([stream]),
            **decoding,
        )


def _chat_format(trained: DatasetFormat, tokenizer: Any) -> DatasetFormat:
    """Return the run's format, or the tokenizer's template for `raw`, which cannot separate messages."""
    if trained.format_type == "raw" and tokenizer.chat_template:
        return trained.model_copy(update={"format_type": "tokenizer"})
    return trained


def _reason(stream: AnswerStream, settings: Sampling) -> EndReason:
    if stream.stop.is_found:
        return "stop"
    if stream.ids and stream.ids[-1] in stream.end_tokens:
        return "end_token"
    return "max_new_tokens" if len(stream.ids) >= settings.max_new_tokens else "max_positions"


def _take_end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Return the model's end tokens and remove its other generation settings, so that both sides use the request's."""
    found = model.generation_config.eos_token_id
    listed = found if isinstance(found, list) else [found]
    model.generation_config = GenerationConfig()
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


@contextlib.contextmanager
def _readable_memory_errors() -> Iterator[None]:
    """Turn a lack of memory into a ConflictError."""
    try:
        yield
    except Exception as error:
        memory = exhausted_memory(error)
        if memory is None:
            raise
        raise ConflictError(f"The model needs more {memory} than is free; try again when more is free") from error
