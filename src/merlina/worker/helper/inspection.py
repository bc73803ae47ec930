"""What only transformers can tell of a run before it starts: the model's size, its tokenizer, its pairs as tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from merlina.data.dataset import SkippedRow, read_pairs, split_pairs
from merlina.data.doctor import Doctor
from merlina.data.fingerprint import stamp
from merlina.data.formats import MARKERS
from merlina.data.pairs import Pair, UnusableRowError
from merlina.data.row_limit import RowLimit
from merlina.domain.targets import group
from merlina.errors import MerlinaError, ModelError
from merlina.schemas.inspection import DataFacts, ModelFacts, PairTokens, RunFacts, TokenizerFacts
from merlina.schemas.training import MAX_TEXT_TOKENS, TrainingConfig
from merlina.training.engine.attention import packing_obstacle
from merlina.training.models.loading import load_tokenizer, max_positions, readable_errors, split_gguf, vocabulary_size
from merlina.training.models.targets import sites
from merlina.worker.encoding import PairEncoder
from merlina.worker.helper.phases import PHASES

_TEMPLATE_SHOWN = 200
_LOADING_SECONDS = 120.0
# For so long what the Hub said of a model is taken for granted.
_HUB_SECONDS = 300.0
_NO_LIMIT = 10**9
_MOST_ROWS = 2000
_MOST_SECONDS = 3.0
_DROPOUTS = ("attention_dropout", "attn_pdrop")
_State = tuple[object, ...]
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")


@dataclass(frozen=True)
class _Access:
    token: str | None
    trust_remote_code: bool


def tokenizer_facts(model_name: str, token: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """A TokenizerFacts. Raises ModelError."""
    tokenizer = cached_tokenizer(model_name, token, trust_remote_code)
    template = tokenizer.chat_template
    return TokenizerFacts(
        vocab_size=len(tokenizer),
        model_max_length=_longest_text(tokenizer, model_name, _Access(token, trust_remote_code)),
        has_chat_template=bool(template),
        chat_template_preview=str(template)[:_TEMPLATE_SHOWN] if template else None,
        pad_token=tokenizer.pad_token,
        eos_token=tokenizer.eos_token,
        bos_token=tokenizer.bos_token,
    ).model_dump()


def model_facts(model_name: str, token: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """A ModelFacts. Raises ModelError."""
    return _model_facts(model_name, _Access(token, trust_remote_code)).model_dump()


def inspect_run(
    config: dict[str, Any], file: str | None, token: str | None, trust_remote_code: bool, max_row_mb: int
) -> dict[str, Any]:
    """A RunFacts: where something can't be read, its error stands in its place."""
    training = TrainingConfig.model_validate(config)
    access = _Access(token, trust_remote_code)
    model, model_error = _or_error(lambda: _model_facts(training.base_model, access))
    tokenizer, tokenizer_error = _or_error(lambda: cached_tokenizer(training.base_model, token, trust_remote_code))
    path, limit = Path(file) if file else None, RowLimit.of_megabytes(max_row_mb)
    data, data_error = _or_error(lambda: _look_at_data(training, path, access, tokenizer, limit))
    markers = MARKERS[training.dataset.format.format_type] if tokenizer else ()
    return RunFacts(
        model=model,
        model_error=model_error,
        missing_markers=[marker for marker in markers if not _is_one_token(tokenizer, marker)],
        tokenizer_error=tokenizer_error,
        data=data,
        data_error=data_error,
    ).model_dump()


def cached_tokenizer(name: str, token: str | None, trust_remote_code: bool = False) -> Any:
    """Raises ModelError; what was loaded is kept for the next question, unless its files have changed since."""
    return _tokenizer(name, token, trust_remote_code, _state_of(name))


@lru_cache(maxsize=4)
def _tokenizer(name: str, token: str | None, trust_remote_code: bool, _state: _State) -> Any:
    with PHASES.during(f"Loading the tokenizer of {name!r}", _LOADING_SECONDS, ModelError):
        return load_tokenizer(name, token, trust_remote_code)


def _state_of(model: str) -> _State:
    """What changes with the files of a local model; with the time for one of the Hub, which may get a new revision."""
    name, gguf = split_gguf(model)
    folder = Path(name)
    if not folder.is_dir():
        return (int(time.monotonic() / _HUB_SECONDS),)
    found = [folder / gguf] if gguf else sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")])
    return tuple((str(path), *stamp(path).model_dump().values()) for path in found if path.is_file())


def _or_error(ask: Any) -> tuple[Any, str | None]:
    try:
        return ask(), None
    except MerlinaError as error:
        return None, error.message


def _model_facts(base_model: str, access: _Access) -> ModelFacts:
    """Raises ModelError; kept like a tokenizer."""
    return _facts_of_model(base_model, access, _state_of(base_model))


@lru_cache(maxsize=8)
def _facts_of_model(base_model: str, access: _Access, _state: _State) -> ModelFacts:
    """Builds the model without its weights. Raises ModelError."""
    phase = PHASES.during(f"Building the model {base_model!r} without its weights", _LOADING_SECONDS, ModelError)
    with phase, readable_errors(base_model, access.token):
        config = _config(base_model, access)
        if hasattr(config, "quantization_config") and split_gguf(base_model)[1]:
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=access.trust_remote_code)
    return _measure(model)


def _config(base_model: str, access: _Access) -> Any:
    """transformers' configuration of a model."""
    name, gguf = split_gguf(base_model)
    return AutoConfig.from_pretrained(
        name,
        token=access.token,
        trust_remote_code=access.trust_remote_code,
        **({"gguf_file": gguf} if gguf else {}),
    )


def _longest_text(tokenizer: Any, base_model: str, access: _Access) -> int:
    """In tokens. Raises ModelError where the tokenizer sets no limit and the model's configuration can't be read."""
    if tokenizer.model_max_length < _NO_LIMIT:
        return int(tokenizer.model_max_length)
    with readable_errors(base_model, access.token):
        return max_positions(_config(base_model, access)) or MAX_TEXT_TOKENS


def _measure(model: Any) -> ModelFacts:
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if _is_linear(module) and module is not head]
    heads = getattr(text, "num_attention_heads", None) or 1  # state-space models have none
    drops_scores = any(getattr(text, name, None) for name in _DROPOUTS)
    return ModelFacts(
        model_type=text.model_type,
        architecture=type(model).__name__,
        parameters=sum(weight.numel() for weight in model.parameters()),
        linear_parameters=sum(module.weight.numel() for _, module in linear),
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        attention_size=heads * (getattr(text, "head_dim", None) or text.hidden_size // heads),
        attention_heads=heads,
        caps_scores=bool(getattr(text, "attn_logit_softcapping", None)),
        drops_scores=drops_scores,
        supports_packing=packing_obstacle(model) is None,
        layers=text.num_hidden_layers,
        vocab_size=vocabulary_size(model),
        max_positions=max_positions(model.config),
        learned_positions=any(_is_position_table(name, module) for name, module in model.named_modules()),
        sites=group(sites(model)),
    )


def _is_linear(module: nn.Module) -> bool:
    # GPT-2 and its kin have their linear layers under this name.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_position_table(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITION_TABLES


def _is_one_token(tokenizer: Any, marker: str) -> bool:
    return len(tokenizer.encode(marker, add_special_tokens=False)) == 1


def _look_at_data(
    training: TrainingConfig, file: Path | None, access: _Access, tokenizer: Any, limit: RowLimit
) -> DataFacts:
    """The doctor's view of the first rows. Raises DataError."""
    dataset = training.dataset
    encoder = None
    if tokenizer is not None:
        encoder = PairEncoder(
            tokenizer, training.base_model, dataset.format, training.max_length, training.max_prompt_length
        )
    doctor = Doctor(MARKERS[dataset.format.format_type])
    numbers: list[int] = []
    give_up_at = time.monotonic() + _MOST_SECONDS
    ended = True
    for item in read_pairs(dataset, file, access.token, needs_rejected=training.needs_rejected, limit=limit):
        if doctor.rows >= _MOST_ROWS or time.monotonic() > give_up_at:
            ended = False
            break
        _show(doctor, item, encoder, numbers)
    _, held_out = split_pairs(numbers, dataset.test_size, training.seed)
    means = doctor.mean_tokens
    return DataFacts(
        rows=doctor.rows,
        all_rows=ended,
        usable=doctor.usable,
        longest=doctor.longest or None,
        highest_id=doctor.highest_id or None,
        highest_id_row=doctor.highest_id_row or None,
        most_tokens=doctor.most_tokens or None,
        mean_tokens=PairTokens(prompt=means[0], chosen=means[1], rejected=means[2]) if means else None,
        findings=doctor.findings(held_out),
    )


def _show(doctor: Doctor, item: Pair | SkippedRow, encoder: PairEncoder | None, numbers: list[int]) -> None:
    if isinstance(item, SkippedRow):
        doctor.skip(item)
        return
    try:
        lengths = encoder.encode(item).lengths if encoder else None
    except UnusableRowError as error:
        doctor.skip(SkippedRow(item.number, error.message, error.kind))
        return
    doctor.see(item, lengths)
    numbers.append(item.number)
