"""How much memory a run will hold at its peak, from the model's own sizes, and what would help most to need less.

`benchmarks/memory_estimate.py` holds the estimate against measured peaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merlina.domain.targets import match
from merlina.domain.units import GIB, MIB, gib
from merlina.hardware.gpus import Gpu
from merlina.hardware.host import available_memory
from merlina.preflight.findings import Finding
from merlina.schemas.inspection import DataFacts, ModelFacts
from merlina.schemas.training import OPTIMIZER_BYTES, PACK_POSITIONS, TrainingConfig, smaller_budget
from merlina.schemas.validation import MemoryEstimate

# By bits of a weight: NF4 with doubly quantized scales takes a little more than its 4 bits.
_HELD_BYTES = {4: 0.53, 8: 1.01}
_HALF = 2
# Of one chunk of logits (training/output_head), and what is made of it.
_LOGIT_BYTES = {4: 0.4 * GIB, 2: 0.2 * GIB}
# For each logit where a model makes all of them: their log-softmax, its gradient and theirs, and in 16 bits themselves.
_OWN_LOGIT_BYTES = {4: 12, 2: 14}
# Kept for each head, query and key where attention isn't left to a kernel that keeps no scores.
_CAPPED_BYTES, _DROPPED_BYTES = 8, 13
_EAGER_BYTES = {4: 4, 2: 6}
# While one layer's scores are computed, or their gradients.
_PASSING_BYTES = 8


@dataclass(frozen=True)
class _Device:
    """What a kind of device needs beside what the arithmetic says; those of the CPU are fitted to measured peaks."""

    process: float  # bytes of interpreter and libraries, or of the CUDA context
    slack: dict[int, float]  # what the allocator holds for each byte of activations in use, by bytes of the dtype
    score_slack: dict[int, float]  # the same for scores of a dense attention, in blocks of heads by queries by keys
    layers_alive: int  # with checkpointing, how many layers' activations are held at the worst moment


_DEVICES = {
    # Blocks of scores are kept for the next ones (training/host_memory) and fit between each other badly.
    "cpu": _Device(0.75 * GIB, {4: 1.65, 2: 1.3}, {4: 3.4, 2: 1.8}, 9),
    "cuda": _Device(0.6 * GIB, {4: 1.1, 2: 1.1}, {4: 1.1, 2: 1.1}, 1),
}


@dataclass(frozen=True)
class Estimate:
    """Bytes by part."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def estimate(
    config: TrainingConfig,
    model: ModelFacts,
    data: DataFacts | None,
    device: str,
    parts: int = 1,
    budget: int | None = None,
) -> Estimate:
    """The peak of a run on `device`, cpu or cuda. Without tokenized rows a pair may be `max_length` long.

    `parts` is over how many devices the frozen layers are spread. `budget` is the most positions of a pass on a GPU;
    without it a pass there holds the longest pair alone, which is the least that a run can do with.
    """
    model = _as_trained(config, model)
    facts, width = _DEVICES[device], compute_bytes(config, device)
    trained = trained_weights(config, model)
    tokens = _largest_pass(config, model, data, device, budget)
    activations = _activation_bytes(config, model, tokens.positions, width, facts)
    activations += _adapted_copies(config, model) * width
    scores = _score_bytes(config, model, tokens.pairs_seen, device)
    logits = _logit_bytes(model, tokens.positions, width)
    # Gradients grow as activations are let go, so that only what is above those adds to the peak.
    gradients = max(0.0, trained * 4 - activations - scores - logits)
    # Autograd keeps what each float32 weight was cast to until the backward pass has used it.
    cast = model.parameters * width if not config.use_lora and width == _HALF else 0.0
    return Estimate(
        {
            "weights": _weight_bytes(config, model, width, parts) + (trained * 4 if config.use_lora else 0) + cast,
            "gradients": gradients,
            "optimizer state": trained * OPTIMIZER_BYTES[config.optimizer_type],
            "activations": activations,
            **({"attention scores": scores} if scores else {}),
            "log-probabilities": logits,
            "libraries": facts.process,
        }
    )


def _as_trained(config: TrainingConfig, model: ModelFacts) -> ModelFacts:
    """The model as the run will have it: attention that drops out its scores takes no packs."""
    drops_scores = model.drops_scores and not config.disable_dropout
    return model.model_copy(
        update={"drops_scores": drops_scores, "supports_packing": model.supports_packing and not drops_scores}
    )


def expect(
    config: TrainingConfig, model: ModelFacts, data: DataFacts | None, device: str, parts: int, free: float
) -> Estimate:
    """The peak of a run with so many bytes free: with full passes, or on a GPU with smaller ones where those don't fit.

    The run finds the same size by trying (training/probe).
    """
    budget = PACK_POSITIONS[device]
    least = estimate(config, model, data, device, parts)
    while (found := estimate(config, model, data, device, parts, budget)).total > max(free, least.total):
        budget = smaller_budget(budget)
    return found


def chat_memory_mb(config: TrainingConfig, model: ModelFacts, device: str, copies: int) -> int:
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
    return round((weights + kept + facts.process) / MIB)


def check_memory(
    config: TrainingConfig,
    model: ModelFacts | None,
    data: DataFacts | None,
    gpus: Sequence[Gpu],
    reclaimable_mb: Callable[[int | None], int],
) -> tuple[Finding, MemoryEstimate | None]:
    """Whether the run fits into the memory that is free now; of several GPUs, into each of them.

    `reclaimable_mb` tells what is given up before it starts, in MiB: on a GPU by its index, or of RAM (None).
    """
    if model is None:
        return Finding(passed=False), None
    freed = [replace(gpu, memory_free_mb=gpu.memory_free_mb + reclaimable_mb(gpu.index)) for gpu in gpus]
    gpu = _decisive_gpu(config, freed)
    device, place = ("cuda", f"GPU {gpu.index}") if gpu else ("cpu", "RAM")
    free = gpu.memory_free_mb * MIB if gpu else available_memory() + reclaimable_mb(None) * MIB
    gpus_used = len(config.gpu_ids or []) or 1
    whole = _weight_bytes(config, model, compute_bytes(config, device))
    spread_over = gpus_used if config.shards_weights(gpus_used, whole, free) else 1
    needed = estimate(config, model, data, device, spread_over)
    expected = expect(config, model, data, device, spread_over, free)
    parts = sorted(expected.parts.items(), key=lambda part: -part[1])
    shown = MemoryEstimate(
        place=place,
        needed_mb=round(expected.total / MIB),
        minimum_mb=round(needed.total / MIB),
        expected_mb=round(expected.total / MIB),
        free_mb=round(free / MIB),
        parts_mb={name: round(size / MIB) for name, size in parts},
    )
    if needed.total <= free:
        return Finding(), shown
    largest, size = parts[0]
    message = (
        f"memory: the run needs at least {gib(needed.total)} of {place} and {gib(free)} are free. "
        f"Most of it: {largest} ({gib(size)}). {_what_helps(config, model, data, device, spread_over)}"
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
    return "What would help: " + ", ".join(f"{name} ({gib(total)})" for total, name in helping[:4])


_Applies = Callable[[TrainingConfig], bool]
_SAVINGS: tuple[tuple[str, dict[str, Any], _Applies], ...] = (
    ("attn_implementation auto", {"attn_implementation": "auto"}, lambda config: config.attn_implementation != "auto"),
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


def largest_pack(config: TrainingConfig, data: DataFacts | None, device: str, budget: int | None = None) -> int:
    """Its positions: full, or those of one pair that is longer than that, or all there are for a step.

    On a GPU packs are cut to what is free, so that without a budget the longest pair is all that must fit.
    """
    longest = 2 * config.max_length
    a_pair = min(data.most_tokens if data and data.most_tokens else longest, longest)
    return _filled(config, a_pair, device, budget)


def _filled(config: TrainingConfig, a_pair: int, device: str, budget: int | None) -> int:
    """Positions of a pass that holds as many pairs as the budget and a step allow, each of so many positions."""
    if device == "cuda":
        # Pairs differ in length, so that a pass is filled to the last positions.
        return max(a_pair, min(budget or 0, config.pairs_per_step * a_pair))
    return a_pair * min(config.pairs_per_step, max(1, PACK_POSITIONS[device] // a_pair))


@dataclass(frozen=True)
class _Pass:
    """A forward pass: how many positions it has, and how many pairs of a query with a key a dense mask has."""

    positions: int
    pairs_seen: int


def _largest_pass(
    config: TrainingConfig, model: ModelFacts, data: DataFacts | None, device: str, budget: int | None
) -> _Pass:
    """Of a pack; or, the model's own way, of answers that each stand behind their prompt, padded to the longest."""
    if model.supports_packing:
        positions = largest_pack(config, data, device, budget)
        return _Pass(positions, positions**2)
    longest = min(data.longest if data and data.longest else config.max_length, config.max_length)
    a_pair = longest * (1 if config.training_mode == "sft" else 2)
    positions = _filled(config, a_pair, device, budget)
    return _Pass(positions, positions * longest)


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
    adapted, _ = match(model.sites, config.target_modules)
    return config.lora_r * sum(site.adapter_width for site in adapted)


def _adapted_copies(config: TrainingConfig, model: ModelFacts) -> float:
    """Weights of adapted experts' parameters that are kept a second time, with their adapters added, for the backward
    pass; of one layer where it is computed again there."""
    if not config.use_lora:
        return 0.0
    adapted, _ = match(model.sites, config.target_modules)
    copied = sum(site.parameters for site in adapted if site.is_parameter)
    return copied / (model.layers if config.gradient_checkpointing else 1)


def _activation_bytes(config: TrainingConfig, model: ModelFacts, positions: int, width: int, facts: _Device) -> float:
    """What the forward pass of a pack keeps for its backward pass."""
    hidden, inner, heads = model.hidden_size, model.intermediate_size, model.attention_size
    inputs = {"q": hidden, "k": hidden, "v": hidden, "o": heads, "gate": hidden, "up": hidden, "down": inner}
    adapted = sum(size for name, size in inputs.items() if f"{name}_proj" in config.target_modules)
    if config.use_lora and model.supports_packing:
        # Both norms' inputs and outputs; queries, keys, values and what attention makes of them; gate and up.
        kept = (4 * hidden + 4 * heads + 2 * inner) * width + (adapted if config.lora_dropout else 0)
    else:
        # Autograd's own way: norms keep their input twice, feed-forwards their activation as well.
        kept = (6 * hidden + 4 * heads + 3 * inner) * width
    a_layer = positions * kept * facts.slack[width]
    if config.gradient_checkpointing:
        return model.layers * positions * hidden * width + min(facts.layers_alive, model.layers) * a_layer
    return model.layers * a_layer


def _score_bytes(config: TrainingConfig, model: ModelFacts, pairs_seen: int, device: str) -> float:
    """What attention keeps of each query with each key, beside its inputs and outputs; 0 for kernels that keep none."""
    width = compute_bytes(config, device)
    of_a_head = _bytes_of_a_score(config, model, device)
    if of_a_head:
        facts, layers = _DEVICES[device], 1 if config.gradient_checkpointing else model.layers
        slack = (facts.score_slack if model.supports_packing else facts.slack)[width]
        return slack * pairs_seen * model.attention_heads * (layers * of_a_head + _PASSING_BYTES)
    is_masked = config.attn_implementation == "sdpa" or (device == "cuda" and width == 4)
    # One mask for all layers, and as much while it is made.
    return 2.0 * pairs_seen * width if is_masked and model.supports_packing else 0.0


def _bytes_of_a_score(config: TrainingConfig, model: ModelFacts, device: str) -> int:
    is_eager = config.attn_implementation == "eager"
    if model.drops_scores and (is_eager or device == "cpu"):
        return _DROPPED_BYTES
    if model.caps_scores:
        return _CAPPED_BYTES
    return _EAGER_BYTES[compute_bytes(config, device)] if is_eager else 0


def _logit_bytes(model: ModelFacts, positions: int, width: int) -> float:
    if not model.supports_packing:
        return positions * model.vocab_size * _OWN_LOGIT_BYTES[width]
    return _LOGIT_BYTES[width] + 2 * positions * model.hidden_size * width
