"""The parts of a pass on a GPU against their lower bounds: bytes over the measured bandwidth, or operations over the
measured rate of matrix products, whichever takes longer. Part of `gpu.py`.

Legend: N positions, M targets, H hidden size, F width of a feed-forward, V vocabulary.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import SHAPES, Case, load_case_model
from merlina_run import merlina_config
from torch import Tensor, nn

_ROWS, _TARGETS = 11_112, 8192


def main() -> None:
    if not torch.cuda.is_available():
        print("needs a GPU")
        return
    limits = _Limits()
    rate, bandwidth = limits.rate / 1e12, limits.bandwidth / 1e12
    print(f"measured limits: {rate:.0f} TFLOP/s in products of 8,192³, {bandwidth:.2f} TB/s in copies")
    print(f"{'forward and backward pass':58} {'ms':>8} {'bound':>8} {'share':>6}")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        for hidden, width in ((2048, 8192), (4096, 14_336)):
            _norm(limits, hidden)
            _feed_forward(limits, width)
            _head(limits, hidden)
    for heads, size in ((32, 64), (32, 128)):
        _attention(limits, heads, size)
    for shape in ("1b", "8b"):
        for dropout in (0.0, 0.05):
            _whole_pass(limits, shape, dropout)
            torch.cuda.empty_cache()


class _Limits:
    """The card's highest rates, measured: floating-point operations in a product, and bytes copied, per second."""

    def __init__(self) -> None:
        matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        self.rate = 2 * 8192**3 / (_milliseconds(lambda: matrix @ matrix) / 1e3)
        source = torch.randn(2**28, device="cuda")
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / (_milliseconds(lambda: target.copy_(source)) / 1e3)

    def report(self, name: str, milliseconds: float, *, operations: float = 0.0, moved: float = 0.0) -> None:
        """Print a part's time, its lower bound from floating-point `operations` and bytes `moved`, and the ratio."""
        bound = 1e3 * max(operations / self.rate, moved / self.bandwidth)
        print(f"{name:58} {milliseconds:8.3f} {bound:8.3f} {bound / milliseconds:6.0%}", flush=True)


def _milliseconds(run: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=20, rep=100, return_mode="median"))


def _norm(limits: _Limits, hidden: int) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from merlina.training.engine.layers import _norm_forwards

    norm = LlamaRMSNorm(hidden).cuda().bfloat16().requires_grad_(requires_grad=False)
    x, d_y = (torch.randn(1, _ROWS, hidden, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    x.requires_grad_()
    forward = _norm_forwards(norm)[0]
    milliseconds = _milliseconds(lambda: _differentiate(forward(norm, x), d_y, x))
    # Forward: x and y. Backward: d_y, x and d_x.
    limits.report(f"norm [{_ROWS:,}, {hidden:,}]", milliseconds, moved=5 * x.nbytes)


def _feed_forward(limits: _Limits, width: int) -> None:
    from merlina.training.engine.layers import _gated, _gated_backward

    gate_up = torch.randn(_ROWS, 2 * width, device="cuda", dtype=torch.bfloat16)
    d_hidden = torch.randn(_ROWS, width, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        _gated(gate_up, "silu")
        _gated_backward(d_hidden, gate_up, "silu")

    # Forward: g, v and h. Backward: d_h, g, v, h, d_g and d_v.
    limits.report(f"gated activation [{_ROWS:,}, {width:,}]", _milliseconds(run), moved=9 * d_hidden.nbytes)


def _head(limits: _Limits, hidden: int) -> None:
    from merlina.training.engine.output_head import OutputHead

    vocabulary = SHAPES["1b"]["vocab_size"]
    head = OutputHead(_HeadOnly(hidden, vocabulary))
    states = torch.randn(_TARGETS, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(vocabulary, (_TARGETS,), device="cuda")
    outer = torch.randn(_TARGETS, device="cuda")
    limits.report(
        f"output head, {_TARGETS:,} targets × {vocabulary:,} tokens, {hidden:,} wide",
        _milliseconds(lambda: _differentiate(head.logprobs(states, targets), outer, states)),
        operations=4 * _TARGETS * hidden * vocabulary,
    )


class _HeadOnly(nn.Module):
    """A model of an output head alone."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        from transformers import LlamaConfig

        super().__init__()
        self.config = LlamaConfig(vocab_size=vocabulary, hidden_size=hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False, device="cuda", dtype=torch.bfloat16)
        self.head.requires_grad_(requires_grad=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def _attention(limits: _Limits, heads: int, size: int) -> None:
    from merlina.training.engine.attention.flash_attention import flash_attention
    from merlina.training.engine.attention.pack_attention import PackedAttention

    pack = _pack(with_prompt_targets=True)
    positions = pack.input_ids.shape[1]
    query = torch.randn(heads, positions, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    key, value = (torch.randn_like(query[:8]).requires_grad_() for _ in range(2))
    outer = torch.randn(positions, heads, size, device="cuda", dtype=torch.bfloat16)
    layout = PackedAttention(pack, "auto").varlen_layout()

    def run() -> None:
        _differentiate(flash_attention(query, key, value, layout, size**-0.5, None), outer, query, key, value)

    limits.report(
        f"attention, {heads} heads of {size}, 8 key heads, {positions:,} positions",
        _milliseconds(run),
        operations=_attention_operations(pack, heads, size),
    )


def _attention_operations(pack: Any, heads: int, size: int) -> float:
    """Return the operations of attention, forward and backward: two products, and five, over the visible keys."""
    visible = 0.0
    for segment in pack.segments:
        length = segment.end - segment.begin
        visible += length * segment.prefix + length * (length + 1) / 2
    return float(7 * 2 * visible * heads * size)


def _whole_pass(limits: _Limits, shape: str, dropout: float) -> None:
    """Report a whole pass, and how long the CPU takes to launch it."""
    from merlina.training.engine.fast_path import choose_logprob_model
    from merlina.training.models.adapters import make_trainable

    case = Case(shape, "", "", dropout=dropout)
    with tempfile.TemporaryDirectory() as folder:
        model = make_trainable(load_case_model(case, Path(folder)), merlina_config(case)).model
    pack = _pack(with_prompt_targets=True)
    precision = torch.autocast("cuda", dtype=torch.bfloat16)
    run, reason = choose_logprob_model(model, _pack(with_prompt_targets=True, count=2), 0, "auto", precision)
    if reason is not None:
        print(f"{shape}: {reason}")
    model.train()
    launched: list[float] = []

    def step() -> None:
        begun = time.perf_counter()
        with precision, run.unchanged_weights():
            logprobs = run(pack)
            torch.autograd.backward(logprobs.sums.sum())
        launched.append(time.perf_counter() - begun)

    milliseconds = _milliseconds(step)
    # A launch that follows others without a pause also waits for the GPU, so it is measured with the GPU idle.
    launched.clear()
    for _ in range(5):
        torch.cuda.synchronize()
        step()
    launch = 1e3 * sorted(launched)[2]
    positions = pack.input_ids.shape[1]
    name = f"{shape}, dropout {dropout}, {positions:,} positions, launched in {launch:.1f} ms"
    limits.report(name, milliseconds, operations=_pass_operations(model, pack))


def _pass_operations(model: Any, pack: Any) -> float:
    """Return the floating-point operations of a pass with frozen weights.

    Each product is computed forward, and backward for its input; those of adapters also for their weights.
    """
    config = model.get_base_model().config
    positions, total = pack.input_ids.shape[1], 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            rows = len(pack.targets) if name.endswith("lm_head") else positions
            total += (6 if "lora" in name else 4) * rows * module.in_features * module.out_features
    attention = _attention_operations(pack, config.num_attention_heads, config.head_dim)
    return float(total + config.num_hidden_layers * attention)


def _pack(*, with_prompt_targets: bool, count: int = 8) -> Any:
    """Return a pack of `count` pairs, each a prompt of 463 tokens and two answers of 463."""
    from merlina.training.engine.packing import PackedExample, build_pack

    tokens = torch.randint(3, 300, (count, 3, 463), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [PackedExample(prompt, (chosen, rejected)) for prompt, chosen, rejected in tokens]
    return build_pack(examples, with_prompt_targets=with_prompt_targets).to(torch.device("cuda"))


def _differentiate(result: Tensor, outer: Tensor, *inputs: Tensor) -> None:
    torch.autograd.grad(result, inputs, outer)


if __name__ == "__main__":
    main()
