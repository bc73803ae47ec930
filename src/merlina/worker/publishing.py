"""The finished model to the Hugging Face Hub. A failure here costs nothing: the model is safe on the disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import AutoModelForCausalLM

from merlina.runs import RunOrder
from merlina.schemas.training import TrainingConfig
from merlina.training.models import split_gguf
from merlina.worker.model_card import Placement, model_card
from merlina.worker.reporting import EventReporter
from merlina.worker.saving import CONFIG_FILE
from merlina.worker.stages import TrainingData


def publish(
    model: Any,
    tokenizer: Any,
    order: RunOrder,
    data: TrainingData,
    final_metrics: dict[str, float],
    reporter: EventReporter,
) -> None:
    """Uploads the adapter, or the merged weights; what goes wrong is a warning."""
    config, output_dir = order.config, Path(order.output_dir)
    staged = output_dir.with_name(f".{output_dir.name}.upload")
    try:
        api = HfApi(token=os.environ.get("HF_TOKEN"))
        repo = api.create_repo(config.output_name, private=config.hf_hub_private, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        merged = config.use_lora and config.merge_lora_before_upload
        if merged:
            _save_merged(model, tokenizer, order, staged)
        else:
            shutil.copytree(output_dir, staged)
        public = order.model_copy(update={"config": _for_others(config)})
        placement = Placement(repo.repo_id, is_adapter=config.use_lora and not merged)
        (staged / "README.md").write_text(model_card(public, data, final_metrics, placement))
        (staged / CONFIG_FILE).write_text(public.config.model_dump_json(indent=2) + "\n")
        if placement.is_adapter:
            _name_base(staged / "adapter_config.json", public.config.base_model)
        api.upload_folder(repo_id=repo.repo_id, folder_path=staged, commit_message="Upload the fine-tuned model")
        reporter.note("info", f"Uploaded to {repo}")
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reporter.note(
            "warning",
            f"The upload to the Hub failed ({first_line}); the model is safe in {output_dir}. Once that is mended, "
            f"`hf upload {config.output_name} {output_dir}` uploads it",
        )
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _save_merged(model: Any, tokenizer: Any, order: RunOrder, folder: Path) -> None:
    """Whole weights with the adapter in them: where the run held them in 4 bits, the original ones."""
    if order.config.use_4bit:
        name, gguf = split_gguf(order.config.base_model)
        base = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.bfloat16,
            token=os.environ.get("HF_TOKEN"),
            trust_remote_code=order.trust_remote_code,
            **({"gguf_file": gguf} if gguf else {"use_safetensors": True}),
        )
        model = PeftModel.from_pretrained(base, order.output_dir)
    model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _name_base(adapter_config: Path, base_model: str) -> None:
    content = json.loads(adapter_config.read_bytes())
    adapter_config.write_text(json.dumps({**content, "base_model_name_or_path": base_model}, indent=2) + "\n")


def _for_others(config: TrainingConfig) -> TrainingConfig:
    """The configuration without tokens, and without the folders of this machine."""
    source = config.dataset.source
    if source.file_path is not None:
        source = source.model_copy(update={"file_path": Path(source.file_path).name})
    base_model = config.base_model
    if Path(base_model).expanduser().exists():
        base_model = Path(base_model).name
    changes = {"base_model": base_model, "dataset": config.dataset.model_copy(update={"source": source})}
    return config.without_secrets().model_copy(update=changes)
