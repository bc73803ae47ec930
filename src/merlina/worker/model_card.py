"""The README.md of a finished model: what it is, what made it, how to load it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from merlina.runs import RunOrder
from merlina.schemas.training import TrainingConfig
from merlina.version import current
from merlina.worker.stages import TrainingData

_SHOWN_SETTINGS = (
    "training_mode",
    "beta",
    "learning_rate",
    "num_epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "lora_r",
    "lora_alpha",
    "optimizer_type",
    "lr_scheduler_type",
    "seed",
)
_SHOWN_FIGURES = (
    ("Evaluation loss", "eval_loss"),
    ("Reward accuracy on held-out pairs", "eval_reward_accuracy"),
    ("Reward margin on held-out pairs", "eval_reward_margin"),
)
_LIBRARIES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Placement:
    """Where a model is loaded from, a folder or a Hub id, and whether it is an adapter beside its base model.

    `base` is where its readers find the base model; a Hub id where `base_on_hub`.
    """

    address: str
    is_adapter: bool
    base: str
    base_on_hub: bool


def is_on_hub(base_model: str) -> bool:
    """Whether a base model that a run could load is a Hub id, not something on this machine."""
    return not Path(base_model).expanduser().exists()


def model_card(order: RunOrder, data: TrainingData, final_metrics: dict[str, float], placement: Placement) -> str:
    """Markdown with the metadata the Hub reads."""
    config = order.config
    name = config.output_name.rsplit("/", 1)[-1]
    settings = "\n".join(f"| {key} | {getattr(config, key)} |" for key in _SHOWN_SETTINGS)
    libraries = ", ".join(f"{library} {version(library)}" for library in _LIBRARIES)
    return f"""---
{yaml.safe_dump(_metadata(config, placement), sort_keys=False).strip()}
---

# {name}

`{config.base_model}`, fine-tuned by {config.training_mode.upper()} on {len(data.training)} preference pairs
({len(data.held_out)} more were held out).

## Load it

```python
{_how_to_load(placement)}
```

Chat format: `{config.dataset.format.format_type}`.

## What changed
{_figures(final_metrics)}
## How it was made

| Setting | Value |
| --- | --- |
{settings}

All settings are in `merlina.json`. Made with Merlina {current().number}, {libraries}.
"""


def _metadata(config: TrainingConfig, placement: Placement) -> dict[str, Any]:
    metadata: dict[str, Any] = {"tags": ["merlina", config.training_mode]}
    if placement.base_on_hub:
        metadata["base_model"] = placement.base
    if config.dataset.source.repo_id:
        metadata["datasets"] = [config.dataset.source.repo_id]
    return metadata | {"library_name": "peft" if placement.is_adapter else "transformers"}


def _how_to_load(placement: Placement) -> str:
    address = placement.address
    if not placement.is_adapter:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({address!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({address!r})"
        )
    path = Path(placement.base).expanduser()
    base = repr(placement.base)
    names = "AutoModelForCausalLM, AutoTokenizer, GenerationConfig"
    if placement.base.lower().endswith(".gguf"):
        base = f"{str(path.parent)!r}, gguf_file={path.name!r}, quantization_config=GgufConfig(dequantize=True)"
        names += ", GgufConfig"
    return (
        "from peft import PeftModel\n"
        f"from transformers import {names}\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base})\n"
        f"model = PeftModel.from_pretrained(base, {address!r})\n"
        f"model.generation_config = GenerationConfig.from_pretrained({address!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({address!r})"
    )


def _figures(final_metrics: dict[str, float]) -> str:
    rows = [
        f"| {title} | {final_metrics[f'initial_{name}']:.4g} | {final_metrics[f'final_{name}']:.4g} |"
        for title, name in _SHOWN_FIGURES
        if f"initial_{name}" in final_metrics and f"final_{name}" in final_metrics
    ]
    if not rows:
        return "\nNo pairs were held out, so nothing was measured.\n"
    return "\n".join(["", "| | Before | After |", "| --- | --- | --- |", *rows, ""])
