"""The finished model to the Hugging Face Hub. A failure here costs nothing: the model is safe on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from merlina.schemas.training import TrainingConfig
from merlina.worker.reporting import EventReporter


def publish(model: Any, tokenizer: Any, output_dir: Path, config: TrainingConfig, reporter: EventReporter) -> None:
    """Uploads the adapter, or the merged weights; what goes wrong is a warning."""
    merged = output_dir.with_name(f".{output_dir.name}.merged")
    try:
        folder = output_dir
        if config.use_lora and config.merge_lora_before_upload:
            folder = _merge(model, tokenizer, output_dir, merged)
        api = HfApi(token=os.environ.get("HF_TOKEN"))
        repo = api.create_repo(config.output_name, private=config.hf_hub_private, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Upload the fine-tuned model")
        reporter.note("info", f"Uploaded to {repo}")
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reporter.note("warning", f"The upload to the Hub failed ({first_line}); the model is safe in {output_dir}")
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _merge(model: Any, tokenizer: Any, output_dir: Path, merged: Path) -> Path:
    shutil.rmtree(merged, ignore_errors=True)
    model.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    for name in ("merlina.json", "README.md"):
        shutil.copy(output_dir / name, merged / name)
    return merged
