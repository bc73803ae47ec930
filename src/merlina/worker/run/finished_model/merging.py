"""Merging of a finished adapter into the base model's weights, with a comparison of the reloaded result."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoModelForCausalLM

from merlina.errors import TrainingError
from merlina.run_folder.order import RunOrder
from merlina.schemas.training.config import TrainingConfig
from merlina.training.device import compute_dtype, dtype_name, training_device
from merlina.training.evaluation import PlainModel, mean_answer_logprobs, metrics_of
from merlina.training.evaluation_sets import EvaluationSet
from merlina.training.models.adapters import ignore_known_warnings, use_float32_for_whole_layers
from merlina.training.models.loading import clear_quantization_config, weight_source
from merlina.training.models.merging import merge_adapter
from merlina.training.models.model_files import split_gguf
from merlina.worker.run.data_loading import TrainingData
from merlina.worker.run.finished_model.generation_config import GENERATION_CONFIG_FILE

_SAMPLE_PAIRS = 8
# Largest tolerated difference of an answer's mean log-probability per token, in nats. A failed merge is off by whole
# nats; the effect of rounding weights and activations was measured far below these values.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.15}


class MergeError(TrainingError):
    """A merged model differs from the base model with its adapter."""


@dataclass(frozen=True)
class Merged:
    """Measurements of a merged model after it was loaded again.

    `largest` and `mean` are differences from the adapter in the answers' mean log-probabilities per token. `rounding`
    is the fraction of the update that the cast to `dtype` changed (root mean square). `metrics` are those of the
    evaluation sets, `eval_…`, and empty if they were not computed.
    """

    dtype: torch.dtype
    answers: int
    largest: float
    mean: float
    rounding: float
    metrics: dict[str, float]

    @property
    def dtype_name(self) -> str:
        """The name of the dtype of the saved weights, such as bfloat16."""
        return dtype_name(self.dtype)

    def summary(self) -> str:
        """Return the measurements as sentences for the model card and the run's log."""
        comparison = (
            f"Merged in float32 and saved as {self.dtype_name}. After reloading, the mean log-probability per token of "
            f"{self.answers} answers differs from the adapter's by {self.mean:.2g} on average and {self.largest:.2g} "
            "at most"
        )
        if self.rounding < 1e-4:
            return f"{comparison}."
        return (
            f"{comparison}; rounding to {self.dtype_name} changed the weights by {self.rounding:.0%} of the adapter's "
            "update (root mean square). The adapter in `adapter/` and weights merged with merge_dtype float32 do not "
            "have this loss."
        )


def base_dtype(config: TrainingConfig) -> torch.dtype:
    """Return the data type of the base model for merging: that of the run, or bfloat16 if the run quantized it."""
    return torch.bfloat16 if config.weight_bits else compute_dtype(config.dtype, training_device())


def merged_dtype(config: TrainingConfig) -> torch.dtype:
    """Return the data type in which the merged weights are saved."""
    chosen: torch.dtype = base_dtype(config) if config.merge_dtype == "auto" else getattr(torch, config.merge_dtype)
    return chosen


def save_merged(
    folder: Path, order: RunOrder, tokenizer: Any, data: TrainingData, reference_folder: Path, device: torch.device
) -> Merged:
    """Write the merged model of `order.output_dir` into `folder`.

    Raises MergeError if the reloaded model differs from the adapter's by more than the tolerance.
    """
    pairs = (data.evaluation[0].pairs if data.evaluation else data.training)[:_SAMPLE_PAIRS]
    dtype = merged_dtype(order.config)
    adapted = _load_adapter(order, device)
    expected = mean_answer_logprobs(PlainModel(adapted), pairs)
    if order.config.modules_to_save:
        # peft rounded these layers to the dtype of the base model when it loaded them.
        use_float32_for_whole_layers(adapted)
        set_peft_model_state_dict(adapted, load_peft_weights(order.output_dir, device="cpu"))
    merged, rounding = merge_adapter(adapted, dtype)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(order.output_dir) / GENERATION_CONFIG_FILE, folder)
    del adapted, merged
    free_memory_of_models()
    reloaded = PlainModel(_load_merged(folder, dtype, order, device))
    found = mean_answer_logprobs(reloaded, pairs)
    differences = (found - expected).abs()
    largest = float(differences.max())
    coarsest = max(dtype, base_dtype(order.config), key=lambda each: torch.finfo(each).eps)
    tolerance = _TOLERANCES[coarsest]
    if not largest <= tolerance:
        raise MergeError(
            f"after reloading, the merged model's log-probabilities of {len(found)} answers differ from the adapter's "
            f"by up to {largest:.3g} per token ({float(differences.mean()):.3g} on average), more than {tolerance:g}"
        )
    metrics = _evaluation_metrics(reloaded, data.evaluation, order.config, reference_folder, device)
    return Merged(dtype, len(found), largest, float(differences.mean()), rounding.fraction, metrics)


def _evaluation_metrics(
    model: PlainModel,
    sets: Sequence[EvaluationSet],
    config: TrainingConfig,
    reference_folder: Path,
    device: torch.device,
) -> dict[str, float]:
    """Return the metrics of an evaluation, or none if the CPU would have to compute what needed a GPU."""
    if not sets or config.eval_steps == 0 or device != training_device():
        return {}
    return metrics_of(model, sets, config, reference_folder)


def _load_adapter(order: RunOrder, device: torch.device) -> Any:
    name, gguf = split_gguf(order.config.base_model)
    base = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=base_dtype(order.config),
        token=os.environ.get("HF_TOKEN"),
        trust_remote_code=order.trust_remote_code,
        **weight_source(gguf),
    )
    clear_quantization_config(base)
    with ignore_known_warnings():
        return PeftModel.from_pretrained(base, order.output_dir).to(device)


def _load_merged(folder: Path, dtype: torch.dtype, order: RunOrder, device: torch.device) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=order.trust_remote_code)
    return loaded.to(device)


def free_memory_of_models() -> None:
    """Free the memory of models that are no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
