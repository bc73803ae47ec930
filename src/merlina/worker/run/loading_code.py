"""Python code that loads a finished model, in the data type of the run that measured its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merlina.schemas.training import TrainingConfig, WeightBits
from merlina.training.models.loading import compute_dtype, training_device


@dataclass(frozen=True)
class ModelAddress:
    """Where a model is stored, in a folder or under a Hub id, and whether it is an adapter for a base model.

    `base` is the address of the base model, a Hub id if `base_on_hub`. `dtype` is the name of the torch dtype of whole
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


def address_of_run(config: TrainingConfig, path_or_id: str) -> ModelAddress:
    """Return the address of a run's model: an adapter for the base model as in the run, or float32 weights."""
    base = config.base_model
    dtype = compute_dtype_name(config) if config.use_lora else "float32"
    return ModelAddress(path_or_id, config.use_lora, base, is_on_hub(base), dtype, config.weight_bits)


def compute_dtype_name(config: TrainingConfig) -> str:
    """Return the name of the dtype in which a run on this machine computes."""
    return str(compute_dtype(config.dtype, training_device())).removeprefix("torch.")


def loading_code(address: ModelAddress) -> str:
    """Return Python code that defines `model` and `tokenizer`."""
    return _adapter(address) if address.is_adapter else _whole(address)


def _whole(address: ModelAddress) -> str:
    return (
        "import torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({address.path_or_id!r}, dtype=torch.{address.dtype})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({address.path_or_id!r})"
    )


def _adapter(address: ModelAddress) -> str:
    is_gguf = address.base.lower().endswith(".gguf")
    names = ["AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig"]
    names += ["BitsAndBytesConfig"] if address.weight_bits else []
    names += ["GgufConfig"] if is_gguf else []
    dequantizes = is_gguf and address.weight_bits
    lines = [
        *(["from tempfile import TemporaryDirectory\n"] if dequantizes else []),
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join(sorted(names))}\n",
        *_base(address, is_gguf=is_gguf),
        f"model = PeftModel.from_pretrained(base, {address.path_or_id!r})",
        f"model.generation_config = GenerationConfig.from_pretrained({address.path_or_id!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({address.path_or_id!r})",
    ]
    return "\n".join(lines)


def _base(address: ModelAddress, *, is_gguf: bool) -> list[str]:
    dtype = f"dtype=torch.{address.dtype}"
    quantized = f", quantization_config={_quantization(address)}" if address.weight_bits else ""
    if not is_gguf:
        return [f"base = AutoModelForCausalLM.from_pretrained({address.base!r}, {dtype}{quantized})"]
    path = Path(address.base).expanduser()
    loaded = (
        f"AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, gguf_file={path.name!r}, {dtype}, "
        "quantization_config=GgufConfig(dequantize=True))"
    )
    if not quantized:
        return [f"base = {loaded}"]
    # A GGUF file has a quantization of its own: its weights are dequantized first.
    return [
        f"unpacked = {loaded}",
        "del unpacked.config.quantization_config",
        "unpacked.is_quantized, unpacked.hf_quantizer = False, None",
        "with TemporaryDirectory() as folder:",
        "    unpacked.save_pretrained(folder)",
        f"    base = AutoModelForCausalLM.from_pretrained(folder, {dtype}{quantized})",
    ]


def _quantization(address: ModelAddress) -> str:
    if address.weight_bits == 8:
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        f"bnb_4bit_compute_dtype=torch.{address.dtype})"
    )
