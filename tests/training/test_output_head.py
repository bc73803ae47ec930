from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, GraniteConfig, LlamaConfig

from merlina.training.engine import output_head
from merlina.training.engine.output_head import OutputHead

pytestmark = pytest.mark.slow

_WORDS, _HIDDEN, _TARGETS = 4_000, 16, 500
_CONFIGS = {
    "plain": LlamaConfig(),
    "divided": GraniteConfig(logits_scaling=4.0),
    "capped": Gemma2Config(final_logit_softcapping=5.0),
}


class _Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


class _Model:
    def __init__(self, config: Any, weight: Tensor) -> None:
        self.config = config
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = nn.Parameter(weight)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def _by_hand(config: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.t() / (getattr(config, "logits_scaling", None) or 1)
    cap = getattr(config, "final_logit_softcapping", None)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the chunk size, so that small inputs take several chunks."""
    monkeypatch.setattr(output_head, "_CHUNK_BYTES", 2**21)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", list(_CONFIGS))
def test_log_probabilities_and_gradients_are_those_of_whole_logits_in_float64(kind: str, trained: bool) -> None:
    torch.manual_seed(0)
    config, targets = _CONFIGS[kind], torch.randint(_WORDS, (_TARGETS,))
    hidden, weight, outer = torch.randn(_TARGETS, _HIDDEN), torch.randn(_WORDS, _HIDDEN), torch.randn(_TARGETS)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    expected = _by_hand(config, exact[0], exact[1], targets)
    expected.backward(outer.double())

    model = _Model(config, weight.clone())
    model.head.weight.requires_grad_(trained)
    mine = hidden.clone().requires_grad_()
    found = OutputHead(model).logprobs(mine, targets)
    found.backward(outer)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)
    for gradient, wanted in ((mine.grad, exact[0].grad), (model.head.weight.grad, exact[1].grad)):
        if gradient is not None:
            assert wanted is not None
            assert torch.allclose(gradient.double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", ["plain", "capped"])
def test_nothing_of_the_size_of_targets_by_vocabulary_ever_exists(kind: str, trained: bool) -> None:
    words, targets = 2_000, torch.randint(2_000, (1_100,))
    model = _Model(_CONFIGS[kind], torch.randn(words, 8))
    model.head.weight.requires_grad_(trained)
    hidden = torch.randn(len(targets), 8, requires_grad=True)
    with _Largest() as largest:
        OutputHead(model).logprobs(hidden, targets).sum().backward()
    assert words < largest.elements < len(targets) * words / 2
