"""Sizes that the estimates before a run share with the run itself."""

from __future__ import annotations

# Without those of the best evaluated model.
KEPT_CHECKPOINTS = 2
# Token positions of one forward pass. On a CPU, enough for matrix products at the full rate. On a GPU, a pass of any
# size takes the CPU the same time to launch, so few large ones are better, but not with a dense attention mask: its
# cost grows with the square of the positions. The memory probe reduces what does not fit.
PACK_POSITIONS = {"cpu": 1024, "cuda": 16384}
_DENSE_PACK_POSITIONS = 8192
# A frozen model that takes more than this fraction of a GPU's free memory is sharded over the GPUs of the run.
_WHOLE_MODEL_FRACTION = 0.5


def pack_positions(device: str, *, is_dense: bool) -> int:
    """Return the largest number of positions of a pass on `device`, cpu or cuda, with or without a dense mask."""
    largest = PACK_POSITIONS.get(device, PACK_POSITIONS["cuda"])
    return min(largest, _DENSE_PACK_POSITIONS) if is_dense else largest


def smaller_budget(positions: int) -> int:
    """Return the next smaller number of positions to try when a forward pass does not fit into GPU memory."""
    return positions * 3 // 4


# Optimizer state per trained weight, in bytes.
OPTIMIZER_BYTES: dict[str, float] = {
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


def shards_weights(num_ranks: int, weight_bytes: float, free_bytes: float) -> bool:
    """Return whether a run on several GPUs, each with `free_bytes` of free memory, shards a frozen model."""
    return num_ranks > 1 and weight_bytes > _WHOLE_MODEL_FRACTION * free_bytes


def merging_bytes(weight_bytes: float, *, from_gguf: bool) -> float:
    """Return the memory for merging, in bytes, if the merged model's weights take `weight_bytes`."""
    # GGUF weights exist twice while they are dequantized; others are loaded one by one.
    return weight_bytes * (1.5 if from_gguf else 1.1)
