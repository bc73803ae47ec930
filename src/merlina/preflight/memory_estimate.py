"""Estimate the peak memory of a run from the sizes of its model.

The constants are fitted to measured peaks; `benchmarks/memory_estimate.py` compares the estimate with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from merlina.domain.adapter_targets import Site, match
from merlina.domain.model_names import is_gguf
from merlina.domain.run_sizes import OPTIMIZER_BYTES, PACK_POSITIONS, pack_positions, smaller_budget
from merlina.domain.units import GIB, MIB
from merlina.schemas.inspection import DataFacts, ModelFacts
from merlina.schemas.training.config import TrainingConfig

# Bytes per quantized weight by its bits, including the scales, which NF4 quantizes as well.
_QUANTIZED_BYTES = {4: 0.53, 8: 1.01}
_HALF = 2
# One chunk of logits (training/engine/output_head) and its intermediate results, by bytes of the dtype.
_LOGIT_BYTES = {4: 0.4 * GIB, 2: 0.2 * GIB}
# Bytes per logit if the model computes all logits itself: log-softmax, its gradient and the logits' gradient in
# float32, and with a 16-bit dtype the logits too.
_UNCHUNKED_LOGIT_BYTES = {4: 12, 2: 14}
# Bytes stored per head, query and key by attention without a kernel that avoids storing scores.
_CAPPED_BYTES, _DROPPED_BYTES = 8, 13
_EAGER_BYTES = {4: 4, 2: 6}
# Bytes per weight of a layer that is trained as a whole beside adapters: the gradients of earlier passes and of this
# one, to which one product in the dtype of the pass is added.
_WHOLE_GRADIENT_BYTES = 8
# Temporary bytes per weight while an 8-bit optimizer updates it on a CPU: everything in float32.
_UPDATE_BYTES = 18
# Temporary bytes per head, query and key while one layer's scores or their gradients are computed.
_TEMPORARY_SCORE_BYTES = 8


@dataclass(frozen=True)
class _Device:
    """Constants of a kind of device, fitted to measured peaks."""

    process: float  # bytes of interpreter and libraries, or of the CUDA context
    slack: dict[int, float]  # bytes reserved by the allocator per byte of activations, by bytes of the dtype
    score_slack: dict[int, float]  # the same for dense attention scores, in blocks of heads × queries × keys
    layers_alive: int  # with gradient checkpointing: layers that have activations at the same time
    mask_bytes: int  # per element of a dropout mask; GPU kernels draw masks again instead of storing them


_DEVICES = {
    # glibc keeps freed blocks of scores for reuse (training/loop/glibc_allocator), which fragments the heap.
    "cpu": _Device(0.75 * GIB, {4: 1.65, 2: 1.3}, {4: 3.4, 2: 1.8}, 9, 1),
    "cuda": _Device(0.6 * GIB, {4: 1.05, 2: 1.05}, {4: 1.1, 2: 1.1}, 1, 0),
}


@dataclass(frozen=True)
class Estimate:
    """Bytes by component."""

    components: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.components.values())


def estimate(
    config: TrainingConfig,
    model: ModelFacts,
    data: DataFacts | None,
    device: str,
    num_shards: int = 1,
    budget: int | None = None,
) -> Estimate:
    """Return the estimated peak of a run on `device`, cpu or cuda.

    Without tokenized rows, pairs are assumed to be `max_length` long. `num_shards` is the number of GPUs over which the
    frozen layers are sharded. `budget` is the maximum number of positions of a pass on a GPU; without it, a pass holds
    only the longest pair, which gives the minimum.
    """
    model = _as_trained(config, model)
    constants, number_bytes = _DEVICES[device], compute_bytes(config, device)
    trained = trained_weights(config, model)
    largest = _largest_pass(config, model, data, device, budget)
    activations = _activation_bytes(config, model, largest.positions, number_bytes, constants)
    activations += _adapted_copies(config, model, number_bytes) * number_bytes
    scores = _score_bytes(config, model, largest.attention_scores, device)
    logits = _logit_bytes(model, largest.positions, number_bytes)
    # The backward pass frees activations while it allocates gradients: gradients add to the peak only by their excess.
    # 2 GiB of activations and 3 GiB of gradients make a peak of 3 GiB, not 5.
    # That of the output head is allocated first, so layers trained as a whole beside adapters are an exception.
    whole = whole_weights(config, model)
    gradients = max(0.0, (trained - whole) * 4 - activations - scores - logits)
    gradients += whole * (_WHOLE_GRADIENT_BYTES + number_bytes)
    # Of whole layers, autograd keeps the 16-bit copy of each float32 weight until the backward pass has used it.
    in_float32 = whole if config.use_lora else model.parameters
    cast = in_float32 * number_bytes if number_bytes == _HALF else 0.0
    largest_whole = max((site.whole_parameters // site.count for site in _whole_layers(config, model)), default=0)
    on_cpu_in_8bit = device == "cpu" and "8bit" in config.optimizer_type
    return Estimate(
        {
            "weights": weight_bytes(config, model, number_bytes, num_shards)
            + (trained * 4 if config.use_lora else 0)
            + cast,
            "gradients": gradients,
            "optimizer state": trained * OPTIMIZER_BYTES[config.optimizer_type]
            + on_cpu_in_8bit * _UPDATE_BYTES * largest_whole,
            "activations": activations,
            **({"attention scores": scores} if scores else {}),
            "log-probabilities": logits,
            "libraries": constants.process,
        }
    )


def _as_trained(config: TrainingConfig, model: ModelFacts) -> ModelFacts:
    """Return the model's facts during the run: attention with dropout does not support packing."""
    drops_scores = model.drops_scores and not config.disable_dropout
    return model.model_copy(
        update={"drops_scores": drops_scores, "supports_packing": model.supports_packing and not drops_scores}
    )


def expected_peak(
    config: TrainingConfig, model: ModelFacts, data: DataFacts | None, device: str, num_shards: int, free: float
) -> Estimate:
    """Return the expected peak with `free` bytes of memory: on a GPU, passes become smaller until they fit.

    The run determines the same size by experiment (training/loop/memory_probe).
    """
    trained = _as_trained(config, model)
    is_dense = not trained.supports_packing or _score_bytes(config, trained, 1, device) > 0
    budget = pack_positions(device, is_dense=is_dense)
    minimum = estimate(config, model, data, device, num_shards)
    while (found := estimate(config, model, data, device, num_shards, budget)).total > max(free, minimum.total):
        budget = smaller_budget(budget)
    return found


def chat_memory_mb(config: TrainingConfig, model: ModelFacts, device: str, copies: int) -> int:
    """Return the memory for chatting with a run's model, in MiB; a model without adapter is counted `copies` times."""
    constants, number_bytes = _DEVICES[device], compute_bytes(config, device)
    if config.use_lora:
        weights = weight_bytes(config, model, number_bytes) + trained_weights(config, model) * 4
    else:
        weights = model.parameters * number_bytes * copies
    if is_gguf(config.base_model):
        # About half of the weights exist twice while they are dequantized.
        weights += model.parameters * number_bytes / 2
    # KV cache of a conversation of max_length tokens; an upper bound for models with grouped-query attention.
    cache = (
        2 * model.layers * model.attention_size * number_bytes * min(config.max_length, model.max_positions or 1 << 20)
    )
    return round((weights + cache + constants.process) / MIB)


def compute_bytes(config: TrainingConfig, device: str) -> int:
    """Return the bytes per number in matrix products."""
    if config.dtype == "float32" or (config.dtype == "auto" and device == "cpu"):
        return 4
    return 2


def largest_pack(config: TrainingConfig, data: DataFacts | None, device: str, budget: int | None = None) -> int:
    """Return the number of positions of the largest pack: as many pairs as the budget and a step allow, at least one.

    On a GPU without a budget, it is the longest pair alone.
    """
    limit = 2 * config.max_length
    longest_pair = min(data.most_tokens if data and data.most_tokens else limit, limit)
    return _filled(config, longest_pair, device, budget)


def _filled(config: TrainingConfig, pair: int, device: str, budget: int | None) -> int:
    """Return the positions of a pass with as many pairs, of `pair` positions each, as the budget and a step allow."""
    if device == "cuda":
        # Pairs differ in length, so a pass is filled up to the budget rather than to a multiple of the longest pair.
        return max(pair, min(budget or 0, config.pairs_per_step * pair))
    return pair * min(config.pairs_per_step, max(1, PACK_POSITIONS[device] // pair))


@dataclass(frozen=True)
class _Pass:
    """A forward pass: its number of positions, and of attention scores (query-key pairs) per head with a dense mask."""

    positions: int
    attention_scores: int


def _largest_pass(
    config: TrainingConfig, model: ModelFacts, data: DataFacts | None, device: str, budget: int | None
) -> _Pass:
    """Return the largest pass: of a pack or, without packing, of sequences (prompt + answer) padded to the longest."""
    if model.supports_packing:
        positions = largest_pack(config, data, device, budget)
        return _Pass(positions, positions**2)
    longest = min(data.longest if data and data.longest else config.max_length, config.max_length)
    pair = longest * (1 if config.training_mode == "sft" else 2)
    positions = _filled(config, pair, device, budget)
    return _Pass(positions, positions * longest)


def weight_bytes(config: TrainingConfig, model: ModelFacts, number_bytes: int, num_shards: int = 1) -> float:
    """Return the bytes of the model's weights on each of `num_shards` GPUs, without the adapter."""
    if not config.use_lora:
        return model.parameters * 4
    if config.weight_bits is None:
        # With sharded weights, the layer being computed and the prefetched next one are complete on each GPU. With
        # 4 GPUs and 32 layers, 1 - 1/4 - 2/32 = 69 % of the linear weights are elsewhere.
        elsewhere = model.linear_parameters * max(0.0, 1 - 1 / num_shards - (num_shards > 1) * 2 / model.layers)
        return (model.parameters - elsewhere) * number_bytes
    quantized = model.linear_parameters * _QUANTIZED_BYTES[config.weight_bits]
    # GGUF weights are dequantized completely before they are quantized again.
    dequantized = model.parameters * number_bytes if is_gguf(config.base_model) else 0
    return quantized + (model.parameters - model.linear_parameters) * number_bytes + dequantized


def trained_weights(config: TrainingConfig, model: ModelFacts) -> int:
    """Return the number of trained weights."""
    if not config.use_lora:
        return model.parameters
    adapted, _ = match(model.sites, config.target_modules)
    in_adapters = sum(site.adapter_weights(config.lora_r, has_magnitudes=config.use_dora) for site in adapted)
    return in_adapters + whole_weights(config, model)


def whole_weights(config: TrainingConfig, model: ModelFacts) -> int:
    """Return the number of weights in layers that are trained as a whole beside the adapters."""
    return sum(site.whole_parameters for site in _whole_layers(config, model))


def _whole_layers(config: TrainingConfig, model: ModelFacts) -> list[Site]:
    return match(model.sites, config.modules_to_save)[0] if config.use_lora and config.modules_to_save else []


def _adapted_copies(config: TrainingConfig, model: ModelFacts, number_bytes: int) -> float:
    """Return the number of weights that autograd copies for adapters on expert parameters, and for DoRA with dropout.

    The sum of each such parameter and its adapter is kept for the backward pass, and of a layer with DoRA the weight in
    the dtype of the pass; with gradient checkpointing, those of one layer at a time.
    """
    if not config.use_lora:
        return 0.0
    adapted, _ = match(model.sites, config.target_modules)
    casts = config.use_dora and config.lora_dropout > 0 and (number_bytes == _HALF or config.weight_bits is not None)
    copied = sum(site.parameters for site in adapted if site.is_parameter or casts)
    return copied / (model.layers if config.gradient_checkpointing else 1)


def _activation_bytes(
    config: TrainingConfig, model: ModelFacts, positions: int, number_bytes: int, constants: _Device
) -> float:
    """Return the bytes that the forward pass stores for the backward pass."""
    hidden, inner, heads = model.hidden_size, model.intermediate_size, model.attention_size
    # Layers with the same input share a dropout mask.
    inputs = {("q", "k", "v"): hidden, ("o",): heads, ("gate", "up"): hidden, ("down",): inner}
    targets = set(config.target_modules)
    adapted = sum(size for names, size in inputs.items() if targets & {f"{name}_proj" for name in names})
    if config.use_lora and model.supports_packing and not config.use_dora:
        # Fused layers store inputs and outputs of both norms (4 × hidden), queries, keys, values and the output of
        # attention (4 × heads), gate and up projection (2 × inner), and a dropout mask per adapter input.
        masks = constants.mask_bytes * adapted if config.lora_dropout else 0
        per_position: float = (4 * hidden + 4 * heads + 2 * inner) * number_bytes + masks
    else:
        # Autograd also stores the input of norms a second time, and the activation of the feed-forward layer.
        per_position = (6 * hidden + 4 * heads + 3 * inner) * number_bytes + _dora_bytes(
            config, model, number_bytes, constants
        )
    layer = positions * per_position * constants.slack[number_bytes]
    if config.gradient_checkpointing:
        return model.layers * positions * hidden * number_bytes + min(constants.layers_alive, model.layers) * layer
    return model.layers * layer


def _dora_bytes(config: TrainingConfig, model: ModelFacts, number_bytes: int, constants: _Device) -> float:
    """Return the bytes per position that the adapters of one layer store with DoRA, which peft computes.

    For each adapted layer its input, and its outputs without and with the adapter, which magnitudes multiply; with
    dropout also the mask, and the result for the dropped input.
    """
    if not (config.use_lora and config.use_dora):
        return 0.0
    adapted, _ = match(model.sites, config.target_modules)
    stored = sum(site.adapter_width + (2 if config.lora_dropout else 1) * site.outputs for site in adapted)
    inputs = sum(site.adapter_width - site.outputs for site in adapted)
    # In 16 bits, inputs are dropped in float32.
    masks = 4 * constants.mask_bytes * inputs if config.lora_dropout and number_bytes == _HALF else 0
    return (stored * number_bytes + masks) / model.layers


def _score_bytes(config: TrainingConfig, model: ModelFacts, attention_scores: int, device: str) -> float:
    """Return the bytes that attention stores per query-key pair; 0 for kernels that store none."""
    number_bytes = compute_bytes(config, device)
    per_score = _bytes_per_score(config, model, device)
    if per_score:
        constants, layers = _DEVICES[device], 1 if config.gradient_checkpointing else model.layers
        slack = (constants.score_slack if model.supports_packing else constants.slack)[number_bytes]
        return slack * attention_scores * model.attention_heads * (layers * per_score + _TEMPORARY_SCORE_BYTES)
    is_masked = config.attn_implementation == "sdpa" or (device == "cuda" and number_bytes == 4)
    # One mask serves all layers; a temporary copy of the same size exists while it is built.
    return 2.0 * attention_scores * number_bytes if is_masked and model.supports_packing else 0.0


def _bytes_per_score(config: TrainingConfig, model: ModelFacts, device: str) -> int:
    is_eager = config.attn_implementation == "eager"
    if model.drops_scores and (is_eager or device == "cpu"):
        return _DROPPED_BYTES
    if model.caps_scores:
        return _CAPPED_BYTES
    return _EAGER_BYTES[compute_bytes(config, device)] if is_eager else 0


def _logit_bytes(model: ModelFacts, positions: int, number_bytes: int) -> float:
    if not model.supports_packing:
        return positions * model.vocab_size * _UNCHUNKED_LOGIT_BYTES[number_bytes]
    return _LOGIT_BYTES[number_bytes] + 2 * positions * model.hidden_size * number_bytes
