"""Is the base model there, can it be trained, does its tokenizer fit? Its config is looked at, never its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from merlina.domain.targets import AdapterKind, by_kind, describe_missing, match, warn_about_experts
from merlina.executors.helper_pools import Repo
from merlina.hub_reachability import HubReach
from merlina.paths import read_small_file
from merlina.preflight.findings import Finding
from merlina.preflight.hub_access import check_repo
from merlina.schemas.datasets import FormatType
from merlina.schemas.inspection import DataFacts, ModelFacts, RunFacts
from merlina.schemas.parsing.json_text import why_not_json
from merlina.schemas.training import TrainingConfig

_LARGEST_CONFIG = 16 * 1024**2
# A larger one is left to the helper process, which may use the memory.
_LARGEST_PARSED_CONFIG = 1024**2


def check_model(base_model: str, token: str | None, reach: HubReach) -> Finding:
    """A local folder, a `.gguf` file or a Hub id."""
    path = local_path(base_model)
    if os.path.isdir(path):
        return _check_folder(path)
    if base_model.lower().endswith(".gguf"):
        return _check_gguf(path)
    if is_on_this_machine(base_model):
        return _error(
            f"base_model: there is no folder or .gguf file {base_model!r} here, and it is no Hub id (org/name) either"
        )
    return check_repo(base_model, "model", "base_model", token, reach)


def model_repos(base_model: str, trust_remote_code: bool) -> list[Repo]:
    """The repository of the Hub that a base model is read from; none for a folder or a file of this machine.

    The code that a folder's configuration names may be on the Hub, where such code may run at all.
    """
    if not is_on_this_machine(base_model):
        return [Repo("model", base_model)]
    return [Repo("model", base_model, required=False)] if trust_remote_code else []


def is_on_this_machine(base_model: str) -> bool:
    """Whether it is a folder or a `.gguf` file, or at least no id of the Hub."""
    if os.path.isdir(local_path(base_model)) or base_model.lower().endswith(".gguf"):
        return True
    return _looks_like_path(base_model) or not _is_hub_id(base_model)


def check_architecture(facts: RunFacts) -> Finding:
    """Whether transformers knows the architecture."""
    return Finding() if facts.model_error is None else _error(f"base_model: {facts.model_error}")


def check_targets(config: TrainingConfig, model: ModelFacts) -> Finding:
    """Whether the model has the layers that are to get adapters."""
    if not config.use_lora:
        return Finding()
    adapted, missing = match(model.sites, config.target_modules)
    if not adapted:
        return _error(describe_missing(missing, model.sites, all_missing=True))
    warnings = [describe_missing(missing, model.sites, all_missing=False)] if missing else []
    without_experts = warn_about_experts(adapters(config, model))
    return Finding(warnings=(*warnings, *([without_experts] if without_experts else ())))


def adapters(config: TrainingConfig, model: ModelFacts) -> list[AdapterKind]:
    """Return how much of each kind of layer gets an adapter; nothing without LoRA."""
    if not config.use_lora:
        return []
    adapted, _ = match(model.sites, config.target_modules)
    return by_kind(model.sites, adapted, config.lora_r, model.parameters)


def check_tokenizer(facts: RunFacts, format_type: FormatType) -> Finding:
    """Whether the tokenizer can be loaded and has the chat format's markers."""
    if facts.tokenizer_error is not None:
        return _error(f"base_model: {facts.tokenizer_error}")
    if not facts.missing_markers:
        return Finding()
    markers = ", ".join(facts.missing_markers)
    message = (
        f"dataset.format: {markers} of the format {format_type!r} are no tokens of this model, which will read them as "
        "plain text; format 'tokenizer' uses the model's own markers"
    )
    return Finding(passed=False, warnings=(message,))


def check_lengths(config: TrainingConfig, model: ModelFacts, data: DataFacts) -> Finding:
    """Whether the model has a place for every token of the rows looked at, and for as many as there are."""
    if data.highest_id is not None and data.highest_id >= model.vocab_size:
        return _error(
            f"base_model: in row {data.highest_id_row or 1:,} its tokenizer makes the token id {data.highest_id:,}, "
            f"but the model has the ids 0 to {model.vocab_size - 1:,}; the tokenizer belongs to another model, or has "
            "tokens that were added after the model was saved"
        )
    longest = min(data.longest or 0, config.max_length)
    if model.max_positions is None or longest <= model.max_positions:
        return Finding()
    message = f"max_length: rows have up to {longest:,} tokens, but the model has {model.max_positions:,} positions"
    if model.learned_positions:
        return _error(f"{message}; set max_length to at most that")
    return Finding(warnings=(f"{message}: it was never trained on longer texts",))


def local_path(base_model: str) -> Path:
    """The path that a base model may be. It is to be asked about by os.path, which takes any text for a path."""
    return Path(base_model if "\0" in base_model else os.path.expanduser(base_model))


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _looks_like_path(base_model: str) -> bool:
    return base_model.startswith(("/", "./", "../", "~")) or base_model.count("/") > 1


def _check_folder(path: Path) -> Finding:
    config = path / "config.json"
    if not config.is_file():
        return _error(f"base_model: the folder {path} has no config.json, so it holds no transformers model")
    try:
        text = read_small_file(config, _LARGEST_CONFIG)
        if len(text) <= _LARGEST_PARSED_CONFIG:
            json.loads(text)
    except OSError as error:
        return _error(f"base_model: {config} can't be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        return _error(f"base_model: {config} {why_not_json(error)}")
    if any(path.glob("*.safetensors")):
        return Finding()
    if any(path.glob("*.bin")):
        return _error(
            f"base_model: the folder {path} has its weights as pickles (*.bin), which can run code when they are "
            "loaded; save the model with save_pretrained to have them as safetensors"
        )
    return _error(f"base_model: the folder {path} has no weights (*.safetensors)")


def _check_gguf(path: Path) -> Finding:
    if not os.path.isfile(path):
        return _error(f"base_model: there is no file {str(path)!r} on this machine")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return _error(f"base_model: {path} is not a GGUF file, whatever its name says")
    return Finding()


def _error(message: str) -> Finding:
    return Finding(passed=False, errors=(message,))
