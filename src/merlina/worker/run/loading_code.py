"""The Python code by which a finished model's card loads it, held as in the run that measured its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merlina.schemas.training import TrainingConfig, WeightBits
from merlina.training.models.loading import compute_dtype, training_device


@dataclass(frozen=True)
class Placement:
    """Where a model is loaded from, a folder or a Hub id, and whether it is an adapter beside its base model.

    `base` is where its readers find the base model; a Hub id where `base_on_hub`. `dtype` is the name of torch's type
    that whole weights have; `weight_bits` those of a base model that is quantized for its adapter.
    """

    address: str
    is_adapter: bool
    base: str
    base_on_hub: bool
    dtype: str
    weight_bits: WeightBits | None = None

    @property
    def held_as(self) -> str:
        """How the weights are held, in words."""
        if self.is_adapter and self.weight_bits:
            return "4-bit NF4" if self.weight_bits == 4 else "8-bit integers"
        return self.dtype


def is_on_hub(base_model: str) -> bool:
    """Whether a base model that a run could load is a Hub id, not something on this machine."""
    return not Path(base_model).expanduser().exists()


def placement_of_run(config: TrainingConfig, address: str) -> Placement:
    """The placement of what a run saves: an adapter for the base model as the run held it, or float32 weights."""
    base = config.base_model
    dtype = computed_in(config) if config.use_lora else "float32"
    return Placement(address, config.use_lora, base, is_on_hub(base), dtype, config.weight_bits)


def computed_in(config: TrainingConfig) -> str:
    """The name of the type that a run on this machine computes in."""
    return str(compute_dtype(config.dtype, training_device())).removeprefix("torch.")


def loading_code(placement: Placement) -> str:
    """Python that defines `model` and `tokenizer`."""
    return _adapter(placement) if placement.is_adapter else _whole(placement)


def _whole(placement: Placement) -> str:
    return (
        "import torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({placement.address!r}, dtype=torch.{placement.dtype})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({placement.address!r})"
    )


def _adapter(placement: Placement) -> str:
    is_gguf = placement.base.lower().endswith(".gguf")
    names = ["AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig"]
    names += ["BitsAndBytesConfig"] if placement.weight_bits else []
    names += ["GgufConfig"] if is_gguf else []
    unpacks = is_gguf and placement.weight_bits
    lines = [
        *(["from tempfile import TemporaryDirectory\n"] if unpacks else []),
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join(sorted(names))}\n",
        *_base(placement, is_gguf=is_gguf),
        f"model = PeftModel.from_pretrained(base, {placement.address!r})",
        f"model.generation_config = GenerationConfig.from_pretrained({placement.address!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({placement.address!r})",
    ]
    return "\n".join(lines)


def _base(placement: Placement, *, is_gguf: bool) -> list[str]:
    dtype = f"dtype=torch.{placement.dtype}"
    quantized = f", quantization_config={_quantization(placement)}" if placement.weight_bits else ""
    if not is_gguf:
        return [f"base = AutoModelForCausalLM.from_pretrained({placement.base!r}, {dtype}{quantized})"]
    path = Path(placement.base).expanduser()
    loaded = (
        f"AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, gguf_file={path.name!r}, {dtype}, "
        "quantization_config=GgufConfig(dequantize=True))"
    )
    if not quantized:
        return [f"base = {loaded}"]
    # A GGUF is quantized in another way: its weights are unpacked before.
    return [
        f"unpacked = {loaded}",
        "del unpacked.config.quantization_config",
        "unpacked.is_quantized, unpacked.hf_quantizer = False, None",
        "with TemporaryDirectory() as folder:",
        "    unpacked.save_pretrained(folder)",
        f"    base = AutoModelForCausalLM.from_pretrained(folder, {dtype}{quantized})",
    ]


def _quantization(placement: Placement) -> str:
    if placement.weight_bits == 8:
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        f"bnb_4bit_compute_dtype=torch.{placement.dtype})"
    )
