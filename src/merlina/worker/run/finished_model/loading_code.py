"""Python code that loads a finished model, in the data type of the run that measured its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merlina.domain.model_names import is_gguf
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.machine import WeightBits
from merlina.training.device import compute_dtype, dtype_name, training_device


@dataclass(frozen=True)
class ModelLocation:
    """Where a model is stored, in a folder or under a Hub id, and whether it is an adapter for a base model.

    `base` is the location of the base model, a Hub id if `base_on_hub`. `dtype` is the name of the torch dtype of whole
    weights; `weight_bits` is that of a base model that is quantized for its adapter.
    """

    path_or_id: str
    is_adapter: bool
    base: str
    base_on_hub: bool
    dtype: str
    weight_bits: WeightBits | None = None

    @property
    def precision(self) -> str:
        """The precision of the weights, as text."""
        if self.is_adapter and self.weight_bits:
            return "4-bit NF4" if self.weight_bits == 4 else "8-bit integers"
        return self.dtype


def is_on_hub(base_model: str) -> bool:
    """Return whether the base model is a Hub id, not a path on this machine."""
    return not Path(base_model).expanduser().exists()


def location_of_run(config: TrainingConfig, path_or_id: str) -> ModelLocation:
    """Return the location of a run's model: an adapter for the base model as in the run, or float32 weights."""
    base = config.base_model
    dtype = compute_dtype_name(config) if config.use_lora else "float32"
    return ModelLocation(path_or_id, config.use_lora, base, is_on_hub(base), dtype, config.weight_bits)


def compute_dtype_name(config: TrainingConfig) -> str:
    """Return the name of the dtype in which a run on this machine computes."""
    return dtype_name(compute_dtype(config.dtype, training_device()))


def loading_code(location: ModelLocation) -> str:
    """Return Python code that defines `model` and `tokenizer`."""
    return _adapter(location) if location.is_adapter else _whole(location)


def _whole(location: ModelLocation) -> str:
    return (
        "import torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({location.path_or_id!r}, dtype=torch.{location.dtype})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({location.path_or_id!r})"
    )


def _adapter(location: ModelLocation) -> str:
    from_gguf = is_gguf(location.base)
    names = ["AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig"]
    names += ["BitsAndBytesConfig"] if location.weight_bits else []
    names += ["GgufConfig"] if from_gguf else []
    dequantizes = from_gguf and location.weight_bits
    lines = [
        *(["from tempfile import TemporaryDirectory\n"] if dequantizes else []),
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join(sorted(names))}\n",
        *_base(location, from_gguf=from_gguf),
        f"model = PeftModel.from_pretrained(base, {location.path_or_id!r})",
        f"model.generation_config = GenerationConfig.from_pretrained({location.path_or_id!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({location.path_or_id!r})",
    ]
    return "\n".join(lines)


def _base(location: ModelLocation, *, from_gguf: bool) -> list[str]:
    dtype = f"dtype=torch.{location.dtype}"
    quantized = f", quantization_config={_quantization(location)}" if location.weight_bits else ""
    if not from_gguf:
        return [f"base = AutoModelForCausalLM.from_pretrained({location.base!r}, {dtype}{quantized})"]
    path = Path(location.base).expanduser()
    loaded = (
        f"AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, gguf_file={path.name!r}, {dtype}, "
        "quantization_config=GgufConfig(dequantize=True))"
    )
    if not quantized:
        return [f"base = {loaded}"]
    # A GGUF file has a quantization of its own: its weights are dequantized first.
    return [
        f"dequantized = {loaded}",
        "del dequantized.config.quantization_config",
        "dequantized.is_quantized, dequantized.hf_quantizer = False, None",
        "with TemporaryDirectory() as folder:",
        "    dequantized.save_pretrained(folder)",
        f"    base = AutoModelForCausalLM.from_pretrained(folder, {dtype}{quantized})",
    ]


def _quantization(location: ModelLocation) -> str:
    if location.weight_bits == 8:
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        f"bnb_4bit_compute_dtype=torch.{location.dtype})"
    )
