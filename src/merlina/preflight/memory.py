"""How much memory a run will hold at its peak, from the model's own sizes, and what would help most to need less.

`benchmarks/memory_estimate.py` holds the estimate against measured peaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merlina.hardware.gpus import Gpu
from merlina.hardware.host import available_memory
from merlina.preflight.findings import Finding
from merlina.schemas.inspection import DataFacts, ModelFacts
from merlina.schemas.training import PACK_POSITIONS, TrainingConfig
from merlina.schemas.validation import MemoryEstimate

_MB = 1024**2
_GB = 1024**3

# Bytes for each trained weight that the optimizer keeps beside it.
OPTIMIZER_BYTES = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "paged_adamw_32bit": 8.0,
    "lion_8bit": 1.0,
    "paged_lion_8bit": 1.0,
    "adafactor": 0.1,
    "sgd": 0.0,
}
# By bits of a weight: NF4 with doubly quantized scales takes a little more than its 4 bits.
_HELD_BYTES = {4: 0.53, 8: 1.01}
_HALF = 2
# Of one chunk of logits (training/output_head), and what is made of it.
_LOGIT_BYTES = {4: 0.4 * _GB, 2: 0.2 * _GB}


@dataclass(frozen=True)
class _Device:
    """What a kind of device needs beside what the arithmetic says; those of the CPU are fitted to measured peaks."""

    process: float  # bytes of interpreter and libraries, or of the CUDA context
    slack: dict[int, float]  # what the allocator holds for each byte of activations in use, by bytes of the dtype
    layers_alive: int  # with checkpointing, how many layers' activations are held at the worst moment


_DEVICES = {
    "cpu": _Device(0.75 * _GB, {4: 1.65, 2: 1.3}, 9),
    "cuda": _Device(0.6 * _GB, {4: 1.1, 2: 1.1}, 1),
}


@dataclass(frozen=True)
class Estimate:
    """Bytes by part."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def estimate(
    config: TrainingConfig, model: ModelFacts, data: DataFacts | None, device: str, parts: int = 1
) -> Estimate:
    """The peak of a run on `device`, cpu or cuda. Without tokenized rows a pair may be `max_length` long.

    `parts` is over how many devices the frozen layers are spread.
    """
    facts, width = _DEVICES[device], compute_bytes(config, device)
    trained = trained_weights(config, model)
    positions = largest_pack(config, data, device)
    activations = _activation_bytes(config, model, positions, width, facts)
    logits = _LOGIT_BYTES[width] + 2 * positions * model.hidden_size * width
    # Gradients grow as activations are let go, so that only what is above those adds to the peak.
    gradients = max(0.0, trained * 4 - activations - logits)
    # Autograd keeps what each float32 weight was cast to until the backward pass has used it.
    cast = model.parameters * width if not config.use_lora and width == _HALF else 0.0
    return Estimate(
        {
            "weights": _weight_bytes(config, model, width, parts) + (trained * 4 if config.use_lora else 0) + cast,
            "gradients": gradients,
            "optimizer state": trained * OPTIMIZER_BYTES[config.optimizer_type],
            "activations": activations,
            "log-probabilities": logits,
            "libraries": facts.process,
        }
    )


def talk_mb(config: TrainingConfig, model: ModelFacts, device: str, copies: int) -> int:
    """MiB that a run's finished model needs to answer: `copies` times its weights, where it is no adapter on others."""
    facts, width = _DEVICES[device], compute_bytes(config, device)
    if config.use_lora:
        weights = _weight_bytes(config, model, width) + trained_weights(config, model) * 4
    else:
        weights = model.parameters * width * copies
    if config.base_model.lower().endswith(".gguf"):
        # About half of it lies there twice while it is unpacked.
        weights += model.parameters * width / 2
    # Keys and values of a conversation as long as the pairs were, as if each head had its own.
    kept = 2 * model.layers * model.attention_size * width * min(config.max_length, model.max_positions or 1 << 20)
    return round((weights + kept + facts.process) / _MB)


def check_memory(
    config: TrainingConfig,
    model: ModelFacts | None,
    data: DataFacts | None,
    gpus: Sequence[Gpu],
    gives_up: Callable[[int | None], int],
) -> tuple[Finding, MemoryEstimate | None]:
    """Whether the run fits into the memory that is free now; of several GPUs, into each of them.

    `gives_up` tells what is given up before it starts, in MiB: on a GPU by its index, or of RAM (None).
    """
    if model is None:
        return Finding(passed=False), None
    freed = [replace(gpu, memory_free_mb=gpu.memory_free_mb + gives_up(gpu.index)) for gpu in gpus]
    gpu = _decisive_gpu(config, freed)
    device, place = ("cuda", f"GPU {gpu.index}") if gpu else ("cpu", "RAM")
    free = gpu.memory_free_mb * _MB if gpu else available_memory() + gives_up(None) * _MB
    gpus_used = len(config.gpu_ids or []) or 1
    whole = _weight_bytes(config, model, compute_bytes(config, device))
    spread_over = gpus_used if config.spreads_weights(gpus_used, whole, free) else 1
    needed = estimate(config, model, data, device, spread_over)
    parts = sorted(needed.parts.items(), key=lambda part: -part[1])
    shown = MemoryEstimate(
        place=place,
        needed_mb=round(needed.total / _MB),
        free_mb=round(free / _MB),
        parts_mb={name: round(size / _MB) for name, size in parts},
    )
    if needed.total <= free:
        return Finding(), shown
    largest, size = parts[0]
    message = (
        f"memory: the run needs about {needed.total / _GB:.1f} GiB of {place} and {free / _GB:.1f} GiB are free. "
        f"Most of it: {largest} ({size / _GB:.1f} GiB). {_what_helps(config, model, data, device, spread_over)}"
    )
    if gpus_used > 1 and not config.use_lora:
        message += ". More GPUs don't: without LoRA each holds the whole model and takes its share of the pairs"
    return Finding(passed=False, errors=(message,)), shown


def _decisive_gpu(config: TrainingConfig, gpus: Sequence[Gpu]) -> Gpu | None:
    """Of those asked for the one with the least free memory, else the one with the most."""
    if config.gpu_ids is None:
        return max(gpus, key=lambda gpu: gpu.memory_free_mb, default=None)
    asked_for = [gpu for gpu in gpus if gpu.index in (config.gpu_ids or [])]
    return min(asked_for, key=lambda gpu: gpu.memory_free_mb, default=None)


def _what_helps(config: TrainingConfig, model: ModelFacts, data: DataFacts | None, device: str, parts: int) -> str:
    """The changes that would save most, with what each leaves."""
    now = estimate(config, model, data, device, parts).total
    left = [
        (estimate(changed, model, data, device, parts if changed.weight_bits is None else 1).total, name)
        for name, changes, applies in _SAVINGS
        if applies(config) and (changed := config.model_copy(update=changes))
    ]
    helping = sorted((total, name) for total, name in left if total < 0.98 * now)
    if not helping:
        return "Only a smaller base model would need less"
    return "What would help: " + ", ".join(f"{name} ({total / _GB:.1f} GiB)" for total, name in helping[:4])


_Applies = Callable[[TrainingConfig], bool]
_SAVINGS: tuple[tuple[str, dict[str, Any], _Applies], ...] = (
    ("use_4bit", {"use_4bit": True}, lambda config: config.use_lora and config.weight_bits is None),
    ("use_lora", {"use_lora": True}, lambda config: not config.use_lora),
    ("gradient_checkpointing", {"gradient_checkpointing": True}, lambda config: not config.gradient_checkpointing),
    ("dtype bfloat16", {"dtype": "bfloat16"}, lambda config: config.dtype == "float32"),
    ("optimizer_type adamw_8bit", {"optimizer_type": "adamw_8bit"}, lambda config: "8bit" not in config.optimizer_type),
    ("max_length 512", {"max_length": 512, "max_prompt_length": 256}, lambda config: config.max_length > 512),
)


def compute_bytes(config: TrainingConfig, device: str) -> int:
    """Of the numbers that are multiplied."""
    if config.dtype == "float32" or (config.dtype == "auto" and device == "cpu"):
        return 4
    return 2


def largest_pack(config: TrainingConfig, data: DataFacts | None, device: str) -> int:
    """Its positions: full, or those of one pair that is longer than that, or all there are for a step.

    On a GPU packs are cut to what is free, so that the longest pair is all that must fit.
    """
    a_pair = min(data.most_tokens if data and data.most_tokens else 2 * config.max_length, 2 * config.max_length)
    pairs = 1 if device == "cuda" else min(config.pairs_per_step, max(1, PACK_POSITIONS[device] // a_pair))
    return pairs * a_pair


def _weight_bytes(config: TrainingConfig, model: ModelFacts, width: int, parts: int = 1) -> float:
    if not config.use_lora:
        return model.parameters * 4
    if config.weight_bits is None:
        # Of what is spread, the layer that is computed and the next one are there as a whole.
        elsewhere = model.linear_parameters * max(0.0, 1 - 1 / parts - (parts > 1) * 2 / model.layers)
        return (model.parameters - elsewhere) * width
    held = model.linear_parameters * _HELD_BYTES[config.weight_bits]
    # A GGUF is unpacked in full before it is packed again.
    unpacked = model.parameters * width if config.base_model.lower().endswith(".gguf") else 0
    return held + (model.parameters - model.linear_parameters) * width + unpacked


def trained_weights(config: TrainingConfig, model: ModelFacts) -> int:
    """How many weights the run changes."""
    if not config.use_lora:
        return model.parameters
    return config.lora_r * sum(
        model.adapter_width.get(name, 0) for name in {name.rsplit(".", 1)[-1] for name in config.target_modules}
    )


def _activation_bytes(config: TrainingConfig, model: ModelFacts, positions: int, width: int, facts: _Device) -> float:
    """What the forward pass of a pack keeps for its backward pass."""
    hidden, inner, heads = model.hidden_size, model.intermediate_size, model.attention_size
    inputs = {"q": hidden, "k": hidden, "v": hidden, "o": heads, "gate": hidden, "up": hidden, "down": inner}
    adapted = sum(size for name, size in inputs.items() if f"{name}_proj" in config.target_modules)
    if config.use_lora:
        # Both norms' inputs and outputs; queries, keys, values and what attention makes of them; gate and up.
        kept = (4 * hidden + 4 * heads + 2 * inner) * width + (adapted if config.lora_dropout else 0)
    else:
        # Autograd's own way: norms keep their input twice, feed-forwards their activation as well.
        kept = (6 * hidden + 4 * heads + 3 * inner) * width
    a_layer = positions * kept * facts.slack[width]
    if config.gradient_checkpointing:
        return model.layers * positions * hidden * width + min(facts.layers_alive, model.layers) * a_layer
    return model.layers * a_layer
