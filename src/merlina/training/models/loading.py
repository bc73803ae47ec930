"""The base model: from a Hub id, a local folder or a `.gguf` file."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
)

from merlina.schemas.training.machine import AttentionImplementation, Dtype, WeightBits
from merlina.training.device import compute_dtype, training_device
from merlina.training.models.model_files import readable_errors, split_gguf

# The names under which model families declare their number of positions.
_POSITION_COUNTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


@dataclass(frozen=True)
class ModelSpec:
    """Which model to load and how to hold it: in `dtype` or quantized.

    `converted_dir` is the folder for the conversion of a GGUF that is to be quantized; with `is_converted`, it exists
    already. With `stays_in_ram`, the caller moves the model to its device.
    """

    base_model: str
    dtype: Dtype
    weight_bits: WeightBits | None
    attn_implementation: AttentionImplementation
    converted_dir: Path
    token: str | None = None
    trust_remote_code: bool = False
    is_converted: bool = False
    stays_in_ram: bool = False


def load_model(spec: ModelSpec) -> PreTrainedModel:
    """Load a model onto its device as 4-bit NF4, as 8-bit integers, or in the requested dtype. Raises ModelError."""
    device = training_device()
    dtype = compute_dtype(spec.dtype, device)
    base = spec.base_model
    # transformers cannot quantize while it reads a GGUF.
    if spec.weight_bits and split_gguf(base)[1]:
        base = str(_convert_gguf(spec, dtype))
    with readable_errors(base, spec.token):
        name, file = split_gguf(base)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            token=spec.token,
            trust_remote_code=spec.trust_remote_code,
            attn_implementation=_attention(spec.attn_implementation, device),
            **weight_source(file),
            **(_quantized(spec.weight_bits, dtype, device) if spec.weight_bits else {}),
        )
    if file:
        clear_quantization_config(model)
    if spec.weight_bits == 4:
        _prevent_repacking(model)
    # Training never generates; a cache would only take memory.
    model.config.use_cache = False
    return model if spec.weight_bits or spec.stays_in_ram else model.to(device)


def weight_source(gguf: str | None) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that select the weights: a GGUF file of the folder, or safetensors.

    A GGUF is dequantized, since adapters and merging need dense weights.
    """
    if gguf is None:
        return {"use_safetensors": True}
    return {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}


def vocabulary_size(model: Any) -> int:
    """Return the number of token ids of a causal language model: the rows of its embedding or its smaller head."""
    parts = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    return min(_rows(part) for part in parts)


def _rows(part: Any) -> int:
    """Return the rows of an embedding or head, possibly inside an adapter. A quantized weight has another shape."""
    part = getattr(part, "base_layer", part)
    for name in ("num_embeddings", "out_features"):
        if isinstance(rows := getattr(part, name, None), int):
            return rows
    return int(part.weight.shape[0])


def max_positions(config: Any) -> int | None:
    """Return the number of positions that a model's configuration declares; None for models without a limit."""
    text = config.get_text_config()
    declared = (getattr(text, name, None) for name in _POSITION_COUNTS)
    return next((count for count in declared if isinstance(count, int) and count > 0), None)


def weight_bytes(spec: ModelSpec) -> int:
    """Return the size of the model's weights without quantization, in bytes. Raises ModelError."""
    # A model on the meta device has shapes but no memory.
    with readable_errors(spec.base_model, spec.token), torch.device("meta"):
        name, file = split_gguf(spec.base_model)
        given = {"token": spec.token, "trust_remote_code": spec.trust_remote_code}
        config = AutoConfig.from_pretrained(name, **given, **({"gguf_file": file} if file else {}))
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    width = compute_dtype(spec.dtype, training_device()).itemsize
    return width * sum(weight.numel() for weight in model.parameters())


def _quantized(bits: WeightBits, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    how = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": how, "device_map": {"": device}}


def _prevent_repacking(model: PreTrainedModel) -> None:
    """Prevent bitsandbytes from repacking weights for CPU inference in evaluations: training cannot use those."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _attention(wanted: AttentionImplementation, device: torch.device) -> str | None:
    """Return the attention implementation to load with. None lets transformers choose what the model supports."""
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    if wanted == "auto" or (wanted == "flash_attention_2" and not flash):
        return "flash_attention_2" if flash else None
    return wanted


def _convert_gguf(spec: ModelSpec, dtype: torch.dtype) -> Path:
    """Convert a GGUF to a safetensors folder, which loading in 4 or 8 bits needs. Raises ModelError."""
    folder, file = split_gguf(spec.base_model)
    target = spec.converted_dir
    if spec.is_converted:
        return target
    with readable_errors(spec.base_model):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **weight_source(file))
        clear_quantization_config(model)
        model.save_pretrained(target)
    return target


def clear_quantization_config(model: PreTrainedModel) -> None:
    """Remove the quantization settings of a dequantized GGUF, which would prevent the model from being saved."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
