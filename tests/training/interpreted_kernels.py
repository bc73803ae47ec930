"""Triton kernels in Triton's interpreter, against float64 and within whole models.

`test_gpu_kernels.py` runs this file in a process of its own, because Triton decides on import whether it interprets.
By hand: PYTHONPATH=.venv/triton TRITON_INTERPRET=1 pytest -n 0 tests/training/interpreted_kernels.py
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from merlina.training.engine import kernel_choice
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.logprobs import PaddedModel
from merlina.training.engine.packing import build_pack
from tests.training.models import EXAMPLES, adapted, random_model
from tests.training.operations import operations_per_layer
from tests.training.test_fast_path import loss_and_gradients

# Short ones, since the interpreter takes milliseconds for each position.
PACK = build_pack([EXAMPLES[0], EXAMPLES[4]], with_prompt_targets=True)
SINGLE_PACK = build_pack(EXAMPLES[:1], with_prompt_targets=True)
DTYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True, scope="module")
def kernels() -> Any:
    found = kernel_choice.kernels_for(torch.empty(0))
    assert found is not None
    return found


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.isfinite().all()
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp_min(1)
    assert error <= DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 100), (2, 128), (5, 257)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(kernels: Any, dtype: torch.dtype, rows: int, width: int, offset: float) -> None:
    torch.manual_seed(0)
    x, weight, d_y = draw(rows, width, dtype=dtype), draw(width, dtype=dtype), draw(rows, width, dtype=dtype)
    exact = x.double().requires_grad_()
    expected = F.rms_norm(exact, (width,), weight.double() + offset, 1e-6)
    expected.backward(d_y.double())
    y, inverse_rms = kernels.rms_norm(x, weight, 1e-6, offset)
    assert_close(y, expected, dtype)
    assert_close(kernels.rms_norm_backward(d_y, x, weight, inverse_rms, offset), exact.grad, dtype)


# exp(-x) of a large negative x is infinite, and 1 / (1 + infinity) the right result.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "activation"),
    [("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (2, 1024)])
def test_gated(kernels: Any, dtype: torch.dtype, name: str, activation: Any, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gate_up, d_hidden = draw(shape[0], 2 * shape[1], dtype=dtype) * 3, draw(*shape, dtype=dtype) * 3
    exact = gate_up.double().requires_grad_()
    expected = activation(exact[:, : shape[1]]) * exact[:, shape[1] :]
    expected.backward(d_hidden.double())
    assert_close(kernels.gated(gate_up, name), expected, dtype)
    hidden, d_gate_up = kernels.gated_backward(d_hidden.clone(), gate_up, name)
    assert_close(hidden, expected, dtype)
    assert_close(d_gate_up, exact.grad, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "positions", "size"), [((1, 1), 1, 2), ((6, 3), 7, 10), ((4, 1), 5, 64)])
def test_rotate(kernels: Any, dtype: torch.dtype, heads: tuple[int, int], positions: int, size: int) -> None:
    torch.manual_seed(0)
    # As attention layers pass them: views of [N, H, D], here of one tensor for queries and keys.
    queries, keys = draw(positions, sum(heads), size, dtype=dtype).transpose(0, 1)[None].split(heads, 1)
    cos, sin = draw(1, positions, size, dtype=dtype), draw(1, positions, size, dtype=dtype)
    outer = [draw(*states.shape, dtype=dtype) for states in (queries, keys)]
    found = kernels.rotate(queries, keys, cos, sin, transposed=False)
    gradients = kernels.rotate(*outer, cos, sin, transposed=True)
    for states, result, d_result, gradient in zip((queries, keys), found, outer, gradients, strict=True):
        exact = states.double().requires_grad_()
        half = torch.cat((-exact[..., size // 2 :], exact[..., : size // 2]), -1)
        expected = exact * cos[:, None].double() + half * sin[:, None].double()
        expected.backward(d_result.double())
        assert_close(result, expected, dtype)
        assert_close(gradient, exact.grad, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [2, 1000, 4096, 9001])
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_log_probabilities_of_targets(kernels: Any, dtype: torch.dtype, vocabulary: int, factor: float) -> None:
    torch.manual_seed(0)
    logits = draw(3, vocabulary, dtype=dtype) * 5
    # A masked token has a logit of -inf; the last column is the one that an incomplete block would lose.
    logits[0, 0] = -torch.inf
    targets = torch.tensor([1, vocabulary - 1, vocabulary // 2])
    exact = logits.double().requires_grad_()
    expected = (factor * exact).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    expected.sum().backward()
    assert_close(kernels.target_logprobs(logits.clone(), targets, factor, differentiate=False), expected, torch.float32)
    found = kernels.target_logprobs(logits, targets, factor, differentiate=True)
    assert_close(found, expected, torch.float32)
    assert_close(logits, exact.grad, dtype)


def test_a_seed_drops_the_same_elements_again(kernels: Any) -> None:
    x, total = torch.ones(70, 100), torch.zeros(70, 100)
    dropped = kernels.dropped(x, 5, 0.25)
    kernels.add_dropped(total, x, 5, 0.25)
    assert torch.equal(total, dropped)
    # 7,000 elements: the share that is kept has a standard deviation of 0.5 %.
    assert dropped.mean().item() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(dropped, kernels.dropped(x, 6, 0.25))


@pytest.mark.parametrize("family", ["Llama", "Gemma3Text"])
def test_a_model_computed_by_kernels_gives_its_own_log_probabilities_and_gradients(family: str) -> None:
    model = adapted(random_model(family))
    expected = loss_and_gradients(model, PaddedModel(model, 0), [PACK])
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason is None
    with run.unchanged_weights():
        loss, gradients = loss_and_gradients(model, run, [PACK])
    assert loss == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-5)


def test_in_16_bits_the_reference_differs_from_the_policy_by_the_adapter_alone() -> None:
    model = adapted(random_model())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(weight)
    precision = torch.autocast("cpu", dtype=torch.bfloat16)
    run, reason = choose_logprob_model(model, SINGLE_PACK, 0, "auto", precision)
    assert reason is None
    with torch.no_grad(), precision:
        policy = run.target_logprobs(SINGLE_PACK)
        with model.disable_adapter():
            reference = run.target_logprobs(SINGLE_PACK)
    assert torch.equal(policy, reference)


def test_dropout_by_seeds_gives_the_gradient_of_what_it_computed() -> None:
    # Along the gradient g, the loss changes by |g|^2 per unit: central differences in the direction of g.
    model = adapted(random_model(), dropout=0.3)
    run, _ = choose_logprob_model(model, SINGLE_PACK, 0, "auto", nullcontext())
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def loss() -> Tensor:
        torch.manual_seed(3)
        return run.target_logprobs(SINGLE_PACK).sum()

    gradients = torch.autograd.grad(loss(), weights)
    squared = sum(float(gradient.square().sum()) for gradient in gradients)
    size = 1e-3 / squared**0.5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += sign * size * gradient
            values.append(loss().item())
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= sign * size * gradient
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(squared, rel=2e-2)


@pytest.mark.parametrize(("dropout", "most"), [(0.0, 72), (0.05, 92)])
def test_a_layer_takes_few_operations(dropout: float, most: int) -> None:
    """Launching an operation takes a GPU's CPU about as long as the GPU computes it (benchmarks/operations.py)."""
    assert operations_per_layer(dropout).total() <= most


def test_a_kernel_that_computes_wrong_results_is_not_used(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_choice._tried.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "gated", lambda gate_up, _activation: gate_up.sum(1))
        assert kernel_choice.kernels_for(torch.empty(0)) is None
    kernel_choice._tried.cache_clear()
    assert kernel_choice.kernels_for(torch.empty(0)) is kernels
