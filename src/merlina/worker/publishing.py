"""The finished model to the Hugging Face Hub. A failure here costs nothing: the model is safe on the disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, RepoUrl, get_token
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import AutoModelForCausalLM

from merlina.errors import InvalidRequestError, MerlinaError
from merlina.hardware.host import available_memory, give_back_freed_memory
from merlina.hub import in_words
from merlina.runs import RunOrder
from merlina.schemas.training import TrainingConfig
from merlina.training.models import ModelSpec, forget_quantization, split_gguf, weight_bytes, weights_from
from merlina.training.spreading import is_spread
from merlina.worker.generation_config import GENERATION_CONFIG_FILE
from merlina.worker.model_card import Placement, is_on_hub, model_card
from merlina.worker.reporting import EventReporter
from merlina.worker.saving import CONFIG_FILE
from merlina.worker.stages import TrainingData

_GB = 1024**3


def publish(
    model: Any,
    tokenizer: Any,
    order: RunOrder,
    data: TrainingData,
    final_metrics: dict[str, float],
    reporter: EventReporter,
) -> None:
    """Uploads the adapter, or the merged weights; what goes wrong is a warning."""
    output_dir = Path(order.output_dir)
    staged = output_dir.with_name(f".{output_dir.name}.upload")
    try:
        repo = _create_repo(order.config)
        shutil.rmtree(staged, ignore_errors=True)
        merged = _merges(model, order, reporter)
        _stage(staged, repo.repo_id, model, tokenizer, order, data, final_metrics, merged=merged)
        HfApi().upload_folder(repo_id=repo.repo_id, folder_path=staged, commit_message="Upload the fine-tuned model")
        reporter.note("info", f"Uploaded to {repo}")
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        reporter.note("warning", _failure_in_words(error, order.config, output_dir))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _create_repo(config: TrainingConfig) -> RepoUrl:
    """The repository, made where it isn't there. Raises InvalidRequestError where what is private would be public."""
    if get_token() is None:
        raise InvalidRequestError("there is no hf_token; give one that may write")
    repo = HfApi().create_repo(config.output_name, private=config.hf_hub_private, exist_ok=True)
    if config.hf_hub_private and not HfApi().repo_info(repo.repo_id).private:
        raise InvalidRequestError(
            f"{repo.repo_id} is there already and public, which hf_hub_private forbids; make it private on the Hub, "
            "or set hf_hub_private to false"
        )
    return repo


def _merges(model: Any, order: RunOrder, reporter: EventReporter) -> bool:
    """Whether whole weights are uploaded: where they are wanted and, if the base must be loaded anew, fit into RAM."""
    config = order.config
    if not config.merges:
        return False
    if not _needs_base_anew(model, config):
        return True
    give_back_freed_memory()
    needed, free = config.merging_bytes(weight_bytes(_base_in_16_bits(order))), available_memory()
    if needed <= free:
        return True
    reporter.note(
        "warning",
        f"merge_lora_before_upload: the base model in 16 bits needs about {needed / _GB:.1f} GiB of RAM and "
        f"{free / _GB:.1f} GiB are free, so the adapter alone is uploaded",
    )
    return False


def _needs_base_anew(model: Any, config: TrainingConfig) -> bool:
    """Whether the run held its weights in few bits or in parts, which no adapter is merged into."""
    return bool(config.weight_bits) or is_spread(model)


def _base_in_16_bits(order: RunOrder) -> ModelSpec:
    return ModelSpec(
        base_model=order.config.base_model,
        dtype="bfloat16",
        weight_bits=None,
        attn_implementation="auto",
        scratch=Path(order.output_dir),
        token=os.environ.get("HF_TOKEN"),
        trust_remote_code=order.trust_remote_code,
    )


def _stage(
    folder: Path,
    repo_id: str,
    model: Any,
    tokenizer: Any,
    order: RunOrder,
    data: TrainingData,
    final_metrics: dict[str, float],
    *,
    merged: bool,
) -> None:
    """What is uploaded: as on the disk or merged, with a card and a configuration for readers on the Hub."""
    if merged:
        _save_merged(model, tokenizer, order, folder)
    else:
        shutil.copytree(order.output_dir, folder)
    public = order.model_copy(update={"config": _for_others(order.config)})
    base_on_hub = is_on_hub(order.config.base_model)
    base = public.config.base_model if base_on_hub else f"path/to/{public.config.base_model}"
    placement = Placement(repo_id, order.config.use_lora and not merged, base, base_on_hub)
    (folder / "README.md").write_text(model_card(public, data, final_metrics, placement))
    (folder / CONFIG_FILE).write_text(public.config.model_dump_json(indent=2) + "\n")
    if placement.is_adapter:
        _name_base(folder / "adapter_config.json", public.config.base_model)


def _failure_in_words(error: Exception, config: TrainingConfig, output_dir: Path) -> str:
    command = shlex.join(
        ["hf", "upload", config.output_name, str(output_dir), *(["--private"] if config.hf_hub_private else [])]
    )
    return (
        f"The upload to the Hub failed: {_why(error, config)}. But the model is safe in {output_dir}; once that is "
        f"mended, `{command}` uploads it as it is there"
    )


def _why(error: Exception, config: TrainingConfig) -> str:
    if isinstance(error, MerlinaError):
        return error.message
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
        said = f" (the Hub says: {error.server_message})" if error.server_message else ""
        return f"the hf_token given may not write to {config.output_name}; give one with write access{said}"
    words = in_words(error, config.output_name, "model", token_given=True)
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    # An address for an upload carries, behind its question mark, the right to use it.
    return words or re.sub(r"\?\S+", "", first_line)


def _save_merged(model: Any, tokenizer: Any, order: RunOrder, folder: Path) -> None:
    """Whole weights with the adapter in them: where the run's own won't do, the original ones."""
    if _needs_base_anew(model, order.config):
        name, gguf = split_gguf(order.config.base_model)
        base = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.bfloat16,
            token=os.environ.get("HF_TOKEN"),
            trust_remote_code=order.trust_remote_code,
            **weights_from(gguf),
        )
        forget_quantization(base)
        model = PeftModel.from_pretrained(base, order.output_dir)
    model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(order.output_dir) / GENERATION_CONFIG_FILE, folder)


def _name_base(adapter_config: Path, base_model: str) -> None:
    content = json.loads(adapter_config.read_bytes())
    adapter_config.write_text(json.dumps({**content, "base_model_name_or_path": base_model}, indent=2) + "\n")


def _for_others(config: TrainingConfig) -> TrainingConfig:
    """The configuration without tokens, and without the folders of this machine."""
    source = config.dataset.source
    if source.file_path is not None:
        source = source.model_copy(update={"file_path": Path(source.file_path).name})
    base_model = config.base_model
    if not is_on_hub(base_model):
        base_model = Path(base_model).name
    changes = {"base_model": base_model, "dataset": config.dataset.model_copy(update={"source": source})}
    return config.without_secrets().model_copy(update=changes)
