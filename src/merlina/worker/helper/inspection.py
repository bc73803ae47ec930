"""Operations that inspect a run with transformers before it starts: model size, tokenizer, pairs as tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from merlina.data.readers.row_limit import RowLimit
from merlina.data.rendering.chat_formats import MARKERS
from merlina.domain.adapter_targets import group
from merlina.errors import MerlinaError, ModelError
from merlina.schemas.inspection import DataFacts, ModelFacts, RunFacts, TokenizerFacts
from merlina.schemas.operations import InspectModel, InspectRun, InspectTokenizer
from merlina.schemas.training.steps import MAX_TEXT_TOKENS
from merlina.training.engine.attention.pack_attention import packing_obstacle
from merlina.training.models.adapter_targets import sites
from merlina.training.models.loading import max_positions, vocabulary_size
from merlina.training.models.model_files import readable_errors, split_gguf
from merlina.worker.encoding import PairEncoder
from merlina.worker.helper.data_facts import examine_data
from merlina.worker.helper.phases import PHASES
from merlina.worker.helper.tokenizer_cache import MAX_LOADING_SECONDS, Version, cached_tokenizer, version_of

_TEMPLATE_CHARACTERS_SHOWN = 200
# transformers states a much larger model_max_length if a tokenizer has no limit.
_MAX_LENGTH_LIMIT = 10**9
_MAX_ROWS_EXAMINED = 2000
_DROPOUT_FIELDS = ("attention_dropout", "attn_pdrop")
_T = TypeVar("_T")
_POSITION_EMBEDDINGS = ("wpe", "embed_positions", "position_embeddings")


@dataclass(frozen=True)
class _Access:
    token: str | None
    trust_remote_code: bool


def inspect_tokenizer(operation: InspectTokenizer) -> TokenizerFacts:
    """Load a model's tokenizer. Raises ModelError."""
    access = _Access(operation.token, operation.trust_remote_code)
    tokenizer = cached_tokenizer(operation.model_name, operation.token, operation.trust_remote_code)
    template = tokenizer.chat_template
    return TokenizerFacts(
        vocab_size=len(tokenizer),
        model_max_length=_max_length(tokenizer, operation.model_name, access),
        has_chat_template=bool(template),
        chat_template_preview=str(template)[:_TEMPLATE_CHARACTERS_SHOWN] if template else None,
        pad_token=tokenizer.pad_token,
        eos_token=tokenizer.eos_token,
        bos_token=tokenizer.bos_token,
    )


def inspect_model(operation: InspectModel) -> ModelFacts:
    """Build a model without its weights. Raises ModelError."""
    return _model_facts(operation.model_name, _Access(operation.token, operation.trust_remote_code))


def inspect_run(operation: InspectRun) -> RunFacts:
    """Inspect model, tokenizer and data of a run; the error of a part that cannot be read is part of the result."""
    config, access = operation.config, _Access(operation.token, operation.trust_remote_code)
    model, model_error = _or_error(lambda: _model_facts(config.base_model, access))
    tokenizer, tokenizer_error = _or_error(
        lambda: cached_tokenizer(config.base_model, access.token, access.trust_remote_code)
    )
    data, data_error = _or_error(lambda: _examine_data(operation, tokenizer))
    markers = MARKERS.get(config.dataset.format.format_type, ()) if tokenizer else ()
    return RunFacts(
        model=model,
        model_error=model_error,
        missing_markers=[marker for marker in markers if not _is_one_token(tokenizer, marker)],
        tokenizer_error=tokenizer_error,
        data=data,
        data_error=data_error,
    )


def _examine_data(operation: InspectRun, tokenizer: Any | None) -> DataFacts:
    """Examine the first rows, in tokens if there is a tokenizer. Raises DataError, ModelError."""
    encoder = None if tokenizer is None else PairEncoder.for_run(tokenizer, operation.config)
    row_limit = RowLimit.of_megabytes(operation.max_row_mb)
    return examine_data(operation.config, operation.files, operation.token, row_limit, _MAX_ROWS_EXAMINED, encoder)


def _or_error(inspect: Callable[[], _T]) -> tuple[_T | None, str | None]:
    try:
        return inspect(), None
    except MerlinaError as error:
        return None, error.message


def _model_facts(base_model: str, access: _Access) -> ModelFacts:
    """Return the facts from the cache, or inspect the model if its files have changed. Raises ModelError."""
    return _inspect_model(base_model, access, version_of(base_model))


@lru_cache(maxsize=8)
def _inspect_model(base_model: str, access: _Access, _version: Version) -> ModelFacts:
    """Build the model without its weights. Raises ModelError."""
    phase = PHASES.during(f"Building the model {base_model!r} without its weights", MAX_LOADING_SECONDS, ModelError)
    with phase, readable_errors(base_model, access.token):
        config = _config(base_model, access)
        if hasattr(config, "quantization_config") and split_gguf(base_model)[1]:
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=access.trust_remote_code)
    return _facts_of(model)


def _config(base_model: str, access: _Access) -> Any:
    name, gguf = split_gguf(base_model)
    return AutoConfig.from_pretrained(
        name,
        token=access.token,
        trust_remote_code=access.trust_remote_code,
        **({"gguf_file": gguf} if gguf else {}),
    )


def _max_length(tokenizer: Any, base_model: str, access: _Access) -> int:
    """Return the maximum length of a text in tokens. Raises ModelError if the model's configuration cannot be read."""
    if tokenizer.model_max_length < _MAX_LENGTH_LIMIT:
        return int(tokenizer.model_max_length)
    with readable_errors(base_model, access.token):
        return max_positions(_config(base_model, access)) or MAX_TEXT_TOKENS


def _facts_of(model: Any) -> ModelFacts:
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if _is_linear(module) and module is not head]
    heads = getattr(text, "num_attention_heads", None) or 1  # state-space models have none
    drops_scores = any(getattr(text, name, None) for name in _DROPOUT_FIELDS)
    return ModelFacts(
        model_type=text.model_type,
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
        learned_positions=any(_is_position_embedding(name, module) for name, module in model.named_modules()),
        sites=group(sites(model)),
    )


def _is_linear(module: nn.Module) -> bool:
    # The linear layers of GPT-2 and related models have this name.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_position_embedding(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITION_EMBEDDINGS


def _is_one_token(tokenizer: Any, marker: str) -> bool:
    return len(tokenizer.encode(marker, add_special_tokens=False)) == 1
