"""Check the base model: that it exists, is trainable and matches its tokenizer. Its weights are never loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from merlina.domain.adapter_targets import (
    LINEAR_LAYERS_ONLY,
    AdapterKind,
    by_kind,
    describe_missing,
    match,
    match_whole_layers,
    warn_about_experts,
)
from merlina.domain.model_names import is_gguf, local_path
from merlina.errors import Finding
from merlina.executors.helper_pools import Repo
from merlina.hub_reachability import HubReachability
from merlina.paths import read_small_file
from merlina.preflight.hub_access import check_repo
from merlina.preflight.report import CheckResult, error, warning
from merlina.schemas.datasets.config import FormatType
from merlina.schemas.inspection import DataFacts, ModelFacts, RunFacts
from merlina.schemas.parsing.json_text import why_not_json
from merlina.schemas.training.config import TrainingConfig

_MAX_CONFIG_BYTES = 16 * 1024**2
# Larger files are parsed by the helper process, which has a memory limit.
_MAX_PARSED_CONFIG_LENGTH = 1024**2


def check_model(base_model: str, token: str | None, hub: HubReachability) -> CheckResult:
    """Check that the base model, a local folder, a `.gguf` file or a Hub id, is accessible."""
    path = local_path(base_model)
    if os.path.isdir(path):
        return _check_folder(path)
    if is_gguf(base_model):
        return _check_gguf(path)
    if is_local(base_model):
        return error(
            "base_model", f"there is no folder or .gguf file {base_model!r} here, and it is not a Hub id (org/name)"
        )
    return check_repo(base_model, "model", "base_model", token, hub)


def model_repos(base_model: str, trust_remote_code: bool) -> list[Repo]:
    """Return the Hub repositories that a base model is read from; none for a folder or file on this machine.

    With `trust_remote_code`, a local folder may refer to code on the Hub.
    """
    if not is_local(base_model):
        return [Repo("model", base_model)]
    return [Repo("model", base_model, required=False)] if trust_remote_code else []


def is_local(base_model: str) -> bool:
    """Return whether `base_model` is a folder or a `.gguf` file, or at least not a Hub id."""
    if os.path.isdir(local_path(base_model)) or is_gguf(base_model):
        return True
    return _looks_like_path(base_model) or not _is_hub_id(base_model)


def check_architecture(facts: RunFacts) -> CheckResult:
    """Check that transformers supports the architecture."""
    return CheckResult() if facts.model_error is None else error("base_model", facts.model_error)


def check_targets(config: TrainingConfig, model: ModelFacts) -> CheckResult:
    """Check that the model has the layers in `target_modules`."""
    if not config.use_lora:
        return CheckResult()
    adapted, missing = match(model.sites, config.target_modules)
    if not adapted:
        return error("target_modules", describe_missing(missing, model.sites, all_missing=True))
    if config.use_dora and not all(site.is_linear_layer for site in adapted):
        return error("use_dora", LINEAR_LAYERS_ONLY)
    if (
        problem := match_whole_layers(
            model.sites,
            config.modules_to_save or [],
            config.target_modules,
            is_quantized=config.weight_bits is not None,
        )[1]
    ) is not None:
        return error("modules_to_save", problem)
    messages = [describe_missing(missing, model.sites, all_missing=False)] if missing else []
    if (without_experts := warn_about_experts(adapters(config, model))) is not None:
        messages.append(without_experts)
    return CheckResult(findings=tuple(Finding(message, "target_modules", "warning") for message in messages))


def adapters(config: TrainingConfig, model: ModelFacts) -> list[AdapterKind]:
    """Return the adapted layers by kind; empty without LoRA."""
    if not config.use_lora:
        return []
    adapted, _ = match(model.sites, config.target_modules)
    return by_kind(model.sites, adapted, config.lora_r, model.parameters, has_magnitudes=config.use_dora)


def check_tokenizer(facts: RunFacts, format_type: FormatType) -> CheckResult:
    """Check that the tokenizer loads and has the markers of the chat format."""
    if facts.tokenizer_error is not None:
        return error("base_model", facts.tokenizer_error)
    if not facts.missing_markers:
        return CheckResult()
    markers = ", ".join(facts.missing_markers)
    message = (
        f"the markers {markers} of the format {format_type!r} are not tokens of this model, which "
        "reads them as plain text; the format 'tokenizer' uses the model's own markers"
    )
    return warning("dataset.format", message)


def check_tokens(config: TrainingConfig, model: ModelFacts, data: DataFacts) -> CheckResult:
    """Check that the model has an embedding for every token id of the examined rows, and enough positions."""
    if data.highest_id is not None and data.highest_id >= model.vocab_size:
        return error(
            "base_model",
            f"row {data.highest_id_row or 1:,} contains the token id {data.highest_id:,}, but the model "
            f"has only the ids 0 to {model.vocab_size - 1:,}; the tokenizer belongs to another model, or tokens were "
            "added after the model was saved",
        )
    longest = min(data.longest or 0, config.max_length)
    if model.max_positions is None or longest <= model.max_positions:
        return CheckResult()
    message = f"rows have up to {longest:,} tokens, but the model has {model.max_positions:,} positions"
    if model.learned_positions:
        return error("max_length", f"{message}; set max_length to at most that")
    return warning("max_length", f"{message}, and was never trained on longer texts", passed=True)


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _looks_like_path(base_model: str) -> bool:
    return base_model.startswith(("/", "./", "../", "~")) or base_model.count("/") > 1


def _check_folder(path: Path) -> CheckResult:
    config = path / "config.json"
    if not config.is_file():
        return error("base_model", f"the folder {path} has no config.json, so it is not a transformers model")
    try:
        text = read_small_file(config, _MAX_CONFIG_BYTES)
        if len(text) <= _MAX_PARSED_CONFIG_LENGTH:
            json.loads(text)
    except OSError as failure:
        return error("base_model", f"{config} cannot be read: {failure.strerror}")
    except (ValueError, RecursionError) as failure:
        return error("base_model", f"{config} {why_not_json(failure)}")
    if any(path.glob("*.safetensors")):
        return CheckResult()
    if any(path.glob("*.bin")):
        return error(
            "base_model",
            f"the folder {path} has its weights as pickles (*.bin), which can run code when loaded; "
            "convert them to safetensors with save_pretrained",
        )
    return error("base_model", f"the folder {path} has no weights (*.safetensors)")


def _check_gguf(path: Path) -> CheckResult:
    if not os.path.isfile(path):
        return error("base_model", f"there is no file {str(path)!r} on this machine")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return error("base_model", f"{path} is not a GGUF file, despite its name")
    return CheckResult()
