"""Upload of the finished model to the Hugging Face Hub. If it fails, the model is still complete on disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, RepoUrl, get_token
from huggingface_hub.errors import HfHubHTTPError
from torch.distributed.tensor import DTensor

from merlina.domain.model_names import is_gguf
from merlina.domain.run_sizes import merging_bytes
from merlina.domain.units import gib
from merlina.errors import InvalidRequestError, MerlinaError, first_line
from merlina.hardware.host import available_memory, release_freed_memory
from merlina.hub_errors import describe_hub_error
from merlina.run_folder.order import RunOrder
from merlina.schemas.datasets.sources import DatasetSource
from merlina.schemas.training.config import TrainingConfig
from merlina.training.device import free_memory, training_device
from merlina.training.models.loading import ModelSpec, weight_bytes
from merlina.worker.run.data_loading import TrainingData
from merlina.worker.run.finished_model.loading_code import ModelLocation, compute_dtype_name, is_on_hub, location_of_run
from merlina.worker.run.finished_model.merging import (
    Merged,
    base_dtype,
    free_memory_of_models,
    merged_dtype,
    save_merged,
)
from merlina.worker.run.finished_model.model_card import merged_metrics_table, model_card, run_metrics_table
from merlina.worker.run.finished_model.saving import CONFIG_FILE
from merlina.worker.run.reporting import EventReporter, redact_tokens

# The folder of the adapter beside merged weights.
_ADAPTER_FOLDER = "adapter"


def publish(
    model: Any,
    tokenizer: Any,
    order: RunOrder,
    data: TrainingData,
    final_metrics: dict[str, float],
    reporter: EventReporter,
    reference_folder: Path,
) -> None:
    """Upload the adapter or the merged weights; errors are reported as warnings.

    `model` must already be saved in `order.output_dir`: its weights are freed to make memory for the merge.
    `reference_folder` holds the reference's log-probabilities of the evaluation sets.
    """
    output_dir = Path(order.output_dir)
    staged = output_dir.with_name(f".{output_dir.name}.{order.job_id}.upload")
    try:
        repo = _create_repo(order.config)
        _free_weights(model)
        shutil.rmtree(staged, ignore_errors=True)
        merged = _merge(staged, tokenizer, order, data, reference_folder, reporter)
        if merged is None:
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(output_dir, staged)
        _write_card_and_config(staged, repo.repo_id, order, data, final_metrics, merged)
        HfApi().upload_folder(repo_id=repo.repo_id, folder_path=staged, commit_message="Upload the fine-tuned model")
        reporter.note("info", f"Uploaded to {repo}")
    except Exception as error:
        sys.stderr.write(_traceback())
        reporter.note("warning", _describe_failure(error, order.config, output_dir))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _create_repo(config: TrainingConfig) -> RepoUrl:
    """Return the repository, created if missing. Raises InvalidRequestError if a private model would become public."""
    if get_token() is None:
        raise InvalidRequestError("there is no hf_token; set one with write access")
    repo = HfApi().create_repo(config.output_name, private=config.hf_hub_private, exist_ok=True)
    if config.hf_hub_private and not HfApi().repo_info(repo.repo_id).private:
        raise InvalidRequestError(
            f"{repo.repo_id} already exists and is public, but hf_hub_private is true; make it private on the Hub, or "
            "set hf_hub_private to false"
        )
    return repo


def _free_weights(model: Any) -> None:
    """Free the memory of the model's weights, although other objects still refer to the model."""
    if model is not None:
        for weight in model.parameters():
            weight.grad = None
            if not isinstance(weight, DTensor):
                weight.data = weight.data.new_empty(0)
    free_memory_of_models()
    release_freed_memory()


def _merge(
    folder: Path, tokenizer: Any, order: RunOrder, data: TrainingData, reference_folder: Path, reporter: EventReporter
) -> Merged | None:
    """Write the merged model into `folder`; None if the adapter is uploaded, with a warning if a merge failed."""
    if not order.config.merges:
        return None
    device = _device_for_merging(order, reporter)
    if device is None:
        return None
    try:
        merged = save_merged(folder, order, tokenizer, data, reference_folder, device)
    except Exception as error:
        sys.stderr.write(_traceback())
        reason = error.message if isinstance(error, MerlinaError) else f"{type(error).__name__}: {first_line(error)}"
        reporter.note(
            "warning",
            f"merge_lora_before_upload: {reason}. The adapter is uploaded instead of the merged model",
        )
        return None
    finally:
        free_memory_of_models()
    _copy_adapter(Path(order.output_dir), folder / _ADAPTER_FOLDER, _public_config(order.config).base_model)
    reporter.note("info", merged.summary())
    return merged


def _device_for_merging(order: RunOrder, reporter: EventReporter) -> torch.device | None:
    """Return the training device if its free memory suffices for the base model, else the CPU, else None."""
    config = order.config
    number_bytes = max(base_dtype(config).itemsize, merged_dtype(config).itemsize)
    weights = weight_bytes(_base(order))
    needed = merging_bytes(weights / base_dtype(config).itemsize * number_bytes, from_gguf=is_gguf(config.base_model))
    if training_device().type == "cuda" and needed <= free_memory():
        return training_device()
    free = available_memory()
    if needed <= free:
        return torch.device("cpu")
    reporter.note(
        "warning",
        f"merge_lora_before_upload: the base model in {8 * number_bytes} bits needs about {gib(needed)} of RAM and "
        f"{gib(free)} are free, so the adapter alone is uploaded",
    )
    return None


def _base(order: RunOrder) -> ModelSpec:
    """Return the specification of the base model for merging, without quantization."""
    return ModelSpec(
        base_model=order.config.base_model,
        dtype="bfloat16" if order.config.weight_bits else order.config.dtype,
        weight_bits=None,
        attn_implementation="auto",
        converted_dir=Path(order.output_dir),
        token=os.environ.get("HF_TOKEN"),
        trust_remote_code=order.trust_remote_code,
    )


def _write_card_and_config(
    folder: Path,
    repo_id: str,
    order: RunOrder,
    data: TrainingData,
    final_metrics: dict[str, float],
    merged: Merged | None,
) -> None:
    """Write the model card and the configuration without local paths and tokens."""
    public = order.model_copy(update={"config": _public_config(order.config)})
    saved = location_of_run(order.config, repo_id)
    base = public.config.base_model if saved.base_on_hub else f"path/to/{public.config.base_model}"
    if merged is None:
        location = replace(saved, base=base)
        metrics = run_metrics_table(final_metrics, data, location, compute_dtype_name(order.config))
    else:
        location = ModelLocation(repo_id, False, base, saved.base_on_hub, merged.dtype_name)
        metrics = merged_metrics_table(final_metrics, data, merged, saved.precision)
    (folder / "README.md").write_text(model_card(public, data, metrics, location))
    (folder / CONFIG_FILE).write_text(public.config.model_dump_json(indent=2) + "\n")
    if location.is_adapter:
        _set_base_model(folder / "adapter_config.json", public.config.base_model)


def _copy_adapter(source: Path, target: Path, base_model: str) -> None:
    """Copy the adapter beside the merged weights, for users who want it without their rounding."""
    target.mkdir()
    for file in source.glob("adapter_*"):
        shutil.copy(file, target)
    _set_base_model(target / "adapter_config.json", base_model)


def _describe_failure(error: Exception, config: TrainingConfig, output_dir: Path) -> str:
    command = shlex.join(
        ["hf", "upload", config.output_name, str(output_dir), *(["--private"] if config.hf_hub_private else [])]
    )
    return (
        f"The upload to the Hub failed: {_reason(error, config)}. The model is complete in {output_dir}; once the "
        f"cause is resolved, `{command}` uploads it"
    )


def _reason(error: Exception, config: TrainingConfig) -> str:
    if isinstance(error, MerlinaError):
        return error.message
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
        details = f" (the Hub: {error.server_message})" if error.server_message else ""
        return f"the hf_token may not write to {config.output_name}; set one with write access{details}"
    words = describe_hub_error(error, config.output_name, "model", token_given=True)
    # The query string of an upload's address authorizes it.
    return words or _without_queries(first_line(error))


def _traceback() -> str:
    """Return the traceback of the error being handled without tokens and query strings."""
    return redact_tokens(_without_queries(traceback.format_exc()))


def _without_queries(text: str) -> str:
    return re.sub(r"\?\S+", "", text)


def _set_base_model(adapter_config: Path, base_model: str) -> None:
    content = json.loads(adapter_config.read_bytes())
    adapter_config.write_text(json.dumps({**content, "base_model_name_or_path": base_model}, indent=2) + "\n")


def _without_folder(source: DatasetSource) -> DatasetSource:
    if source.file_path is None:
        return source
    return source.model_copy(update={"file_path": Path(source.file_path).name})


def _public_config(config: TrainingConfig) -> TrainingConfig:
    """Return the configuration without tokens and without paths of this machine."""
    base_model = config.base_model
    if not is_on_hub(base_model):
        base_model = Path(base_model).name
    changes = {"base_model": base_model, "dataset": config.dataset.with_sources(_without_folder)}
    return config.without_secrets().model_copy(update=changes)
