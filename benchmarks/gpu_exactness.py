"""Log-probabilities and gradients of the engine on a GPU against each model's own in float32 on the CPU.

Part of `gpu.py`. The error of a tensor x is |x - expected| / |expected|, with Euclidean norms. In bfloat16, the error
of the model's own forward pass, with peft's adapters, shows what rounding alone causes.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import common  # noqa: F401  (makes the tests importable)
import torch
from tests.training.models import adapted, gradients, random_model
from torch import Tensor

_SIZES = {
    "vocabulary": 4096, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_hidden_layers": 4,
}  # fmt: skip
_FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 100},
    "Qwen2": {"use_sliding_window": False},
    "Qwen3": {"head_dim": 64},
    "Gemma2": {"head_dim": 64, "sliding_window": 100, "attn_implementation": "eager"},
    "Gemma3Text": {
        "head_dim": 64, "sliding_window": 100,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}  # fmt: skip

_Found = tuple[Tensor, dict[str, Tensor]]


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # torch's default on a GPU: products in float32 are not rounded to TensorFloat-32.
    print(f"errors on {device}: log-probabilities, gradients; {'':10} own in bfloat16")
    for family, changes in _FAMILIES.items():
        # Weights of the default scale give almost uniform predictions, whose errors would be small by themselves.
        model = adapted(_sharpened(random_model(family, **{**_SIZES, **changes})))
        expected = _own(model, nullcontext())
        moved = copy.deepcopy(model).to(device)
        line = f"{family:12}"
        for dtype in (torch.float32, torch.bfloat16):
            precision = nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype=dtype)
            found, reason = _ours(copy.deepcopy(moved), precision)
            line += f"  {str(dtype).removeprefix('torch.')} {_errors(found, expected)}"
            line += f" (slow path: it {reason})" if reason else ""
        line += f"  own {_errors(_own(moved, torch.autocast(device, dtype=torch.bfloat16)), expected)}"
        print(line, flush=True)


def _sharpened(model: Any) -> Any:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(2)
    return model


def _pack(device: torch.device) -> Any:
    from merlina.training.engine.packing import PackedExample, build_pack

    draw = torch.Generator().manual_seed(0)
    examples = []
    for prompt, chosen, rejected in ((150, 90, 40), (30, 200, 170), (1, 60, 2), (90, 1, 130)):
        sections = [torch.randint(3, 4000, (size,), generator=draw).tolist() for size in (prompt, chosen, rejected)]
        examples.append(PackedExample(sections[0], (sections[1], sections[2])))
    return build_pack(examples, with_prompt_targets=True).to(device)


def _own(model: Any, precision: Any) -> _Found:
    from merlina.training.engine.logprobs import PaddedModel

    return _computed(model, PaddedModel(model, 0), precision)


def _ours(model: Any, precision: Any) -> tuple[_Found, str | None]:
    from merlina.training.engine.fast_path import choose_logprob_model

    run, reason = choose_logprob_model(model, _pack(_device(model)), 0, "auto", precision)
    return _computed(model, run, precision), reason


def _computed(model: Any, run: Any, precision: Any) -> _Found:
    pack = _pack(_device(model))
    model.zero_grad()
    with precision, run.unchanged_weights():
        logprobs = run.target_logprobs(pack)
        outer = torch.linspace(-1, 1, len(logprobs), device=logprobs.device)
        (logprobs * outer).sum().backward()
    return logprobs.detach().cpu(), {name: gradient.cpu() for name, gradient in gradients(model).items()}


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


def _errors(found: _Found, expected: _Found) -> str:
    """Return the error of the log-probabilities, and the largest one of a gradient."""
    worst = max(_error(found[1][name], gradient) for name, gradient in expected[1].items())
    return f"{_error(found[0], expected[0]):.1e} {worst:.1e}"


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


if __name__ == "__main__":
    main()
