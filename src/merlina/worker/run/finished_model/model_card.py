"""The model card (README.md) of a finished model."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import yaml

from merlina.run_folder.order import RunOrder
from merlina.schemas.training.config import TrainingConfig
from merlina.version import current
from merlina.worker.run.data_loading import TrainingData
from merlina.worker.run.finished_model.loading_code import ModelLocation, loading_code
from merlina.worker.run.finished_model.merging import Merged

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
# Shown if they differ from their defaults.
_OPTIONAL_SETTINGS = (
    "loss_type",
    "loss_weights",
    "label_smoothing",
    "nll_weight",
    "dpop_weight",
    "length_normalize",
    "ld_alpha",
    "neftune_noise_alpha",
    "use_rslora",
    "use_dora",
    "modules_to_save",
)
_LABEL_SETTINGS = ("desirable_weight", "undesirable_weight")
_SHOWN_METRICS = (
    ("Evaluation loss", "eval_loss"),
    ("Reward accuracy", "eval_reward_accuracy"),
    ("Reward margin", "eval_reward_margin"),
)
_LIBRARIES = ("torch", "transformers", "peft")


def model_card(order: RunOrder, data: TrainingData, metrics: str, location: ModelLocation) -> str:
    """Return the card in Markdown with the Hub's metadata; `metrics` is the text of one of the functions below."""
    config = order.config
    name = config.output_name.rsplit("/", 1)[-1]
    shown = (*_SHOWN_SETTINGS, *(_LABEL_SETTINGS if config.training_mode == "kto" else ()))
    shown = (*shown, *(name for name in _OPTIONAL_SETTINGS if getattr(config, name) != _default(name)))
    settings = "\n".join(f"| {key} | {_cell(getattr(config, key))} |" for key in shown)
    libraries = ", ".join(f"{library} {version(library)}" for library in _LIBRARIES)
    return f"""---
{yaml.safe_dump(_metadata(config, location), sort_keys=False).strip()}
---

# {name}

`{config.base_model}`, fine-tuned with {config.training_mode.upper()} on {data.distinct} {_examples(config, data)}
({_evaluated(config, data)}){_quantized_in_training(config)}.

## Load it

```python
{loading_code(location)}
```

Chat format: `{config.dataset.format.format_type}`.

## What changed
{metrics}
## How it was made

| Setting | Value |
| --- | --- |
{settings}

All settings are in `merlina.json`. Made with Merlina {current().number}, {libraries}.
"""


def _default(name: str) -> Any:
    return TrainingConfig.model_fields[name].get_default(call_default_factory=True)


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _evaluated(config: TrainingConfig, data: TrainingData) -> str:
    """Return what was evaluated on, as a part of a sentence."""
    if config.eval_steps == 0 and config.dataset.eval_parts:
        return "without an evaluation"
    if data.holds_out:
        return f"{data.num_evaluated} more were held out"
    return "evaluated on " + ", ".join(f"{len(each.pairs)} of {each.name}" for each in data.evaluation)


def _measured_pairs(data: TrainingData) -> str:
    if data.holds_out:
        return f"the {data.num_evaluated} held-out pairs"
    return f"the {data.num_evaluated} pairs of {', '.join(each.name for each in data.evaluation)}"


def _examples(config: TrainingConfig, data: TrainingData) -> str:
    # Supervised fine-tuning shows the model answers and compares none.
    if config.training_mode == "sft":
        return "examples"
    return "labeled answers" if data.has_labels else "preference pairs"


def _quantized_in_training(config: TrainingConfig) -> str:
    return f", with the base model quantized to {config.weight_bits} bits" if config.weight_bits else ""


def _metadata(config: TrainingConfig, location: ModelLocation) -> dict[str, Any]:
    metadata: dict[str, Any] = {"tags": ["merlina", config.training_mode]}
    if location.base_on_hub:
        metadata["base_model"] = location.base
    sources = [part.config.source.repo_id for part in config.dataset.training_parts]
    if datasets := list(dict.fromkeys(filter(None, sources))):
        metadata["datasets"] = datasets
    return metadata | {"library_name": "peft" if location.is_adapter else "transformers"}


def run_metrics_table(final_metrics: dict[str, float], data: TrainingData, location: ModelLocation, dtype: str) -> str:
    """Return a Markdown table of the evaluation metrics before and after the run, in the run's precision."""
    if not any(name.startswith("initial_eval_") for name in final_metrics):
        return "\nNo pairs were evaluated.\n"
    step = round(final_metrics.get("kept_step", 0))
    if "final_eval_loss" not in final_metrics:
        return f"\nThe run was stopped at step {step}, before the saved model was evaluated.\n"
    precision = location.precision if location.is_adapter else dtype
    computed = "" if precision == dtype else f" and computed in {dtype}"
    return (
        _table({"Before": "initial_", "After": "final_"}, final_metrics)
        + f"Measured on {_measured_pairs(data)}, with weights in {precision}{computed}; "
        f"the saved model is that of step {step}.\n"
    )


def merged_metrics_table(final_metrics: dict[str, float], data: TrainingData, merged: Merged, precision: str) -> str:
    """Return a Markdown table of the same metrics of the reloaded merged model and of its adapter."""
    summary = f"\n{merged.summary()}\n"
    if not merged.metrics:
        return summary
    base, adapter = f"Before ({precision})", f"Adapter ({precision})"
    columns = {base: "initial_", adapter: "final_", f"This model ({merged.dtype_name})": "merged_"}
    metrics = final_metrics | {f"merged_{name}": value for name, value in merged.metrics.items()}
    return _table(columns, metrics) + f"Measured on {_measured_pairs(data)}.\n" + summary


def _table(columns: dict[str, str], metrics: dict[str, float]) -> str:
    rows = []
    for title, name in _SHOWN_METRICS:
        cells = [metrics.get(f"{prefix}{name}") for prefix in columns.values()]
        if any(cell is not None for cell in cells):
            rows.append(f"| {title} | {' | '.join('–' if cell is None else f'{cell:.4g}' for cell in cells)} |")
    head = f"| | {' | '.join(columns)} |"
    return "\n".join(["", head, f"| --- |{' --- |' * len(columns)}", *rows, "", ""])
