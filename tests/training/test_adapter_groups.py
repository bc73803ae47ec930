"""Adapted layers that read the same input are computed as one, wherever that changes nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merlina.training.engine.adapter_groups import AdapterCasts
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.layers import fuse_layers, unfuse_layers
from merlina.training.engine.packing import build_pack
from tests.training.models import EXAMPLES, adapted, random_model

pytestmark = pytest.mark.slow

PACK = build_pack(EXAMPLES, with_prompt_targets=True)


class Attention(nn.Module):
    """Three projections, called as `use` says."""

    def __init__(self, use: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self._use = use

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self._use(self, x, other)


def in_place(module: Any, x: Tensor, _: Tensor) -> Tensor:
    parts = [module.q_proj(x), module.k_proj(x), module.v_proj(x)]
    return torch.cat([part.clamp_(-0.5, 0.5) for part in parts], -1).square()


def changed_input(module: Any, x: Tensor, _: Tensor) -> Tensor:
    x = x * 1
    q = module.q_proj(x)
    with torch.no_grad():
        x *= 2
    return torch.cat((q.detach(), module.k_proj(x).detach(), module.v_proj(x)), -1)


USES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "together": lambda module, x, _: torch.cat((module.q_proj(x), module.k_proj(x), module.v_proj(x)), -1),
    "in another order": lambda module, x, _: torch.cat((module.v_proj(x), module.q_proj(x), module.k_proj(x)), -1),
    "without k": lambda module, x, _: torch.cat((module.q_proj(x), module.v_proj(x)), -1),
    "cross-attention": lambda module, x, other: torch.cat(
        (module.q_proj(x), module.k_proj(other), module.v_proj(other)), -1
    ),
    "twice": lambda module, x, _: torch.cat((module.q_proj(x), module.q_proj(x), module.k_proj(x)), -1),
    "modified in place": in_place,
    "another value of the input": changed_input,
}


def attention(use: str) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    return inject_adapter_in_model(settings, Attention(USES[use])).train()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("rows", [0, 5])
def test_any_use_of_a_group_gives_what_its_layers_give_alone(use: str, rows: int) -> None:
    found = []
    for fused in (False, True):
        module = attention(use)
        torch.manual_seed(1)
        inputs = [torch.randn(rows, 8, requires_grad=True) for _ in range(2)]
        if fused:
            fuse_layers(module)
            # As the trial of a model does before training.
            with torch.no_grad(), AdapterCasts(module).held():
                module(*inputs)
        result = module(*inputs)
        result.square().sum().backward()
        found.append([result, *(leaf.grad for leaf in (*inputs, *module.parameters()))])
    for expected, own in zip(*found, strict=True):
        # A layer that is not called has no gradient rather than one of zeros, which weight decay would act on.
        assert (expected is None) == (own is None)
        torch.testing.assert_close(own, expected)


def test_a_pass_that_fails_between_two_layers_of_a_group_keeps_nothing() -> None:
    """A smaller pass must find the memory of the failed one free again."""
    model = adapted(random_model("Qwen3"))
    run, _ = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    nodes: list[Any] = []

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    first, second = model.get_base_model().model.layers[:2]
    hooks = [
        first.mlp.register_forward_hook(lambda *call: nodes.append(weakref.ref(call[-1].grad_fn))),
        second.self_attn.q_norm.register_forward_pre_hook(fail),
    ]
    with pytest.raises(torch.OutOfMemoryError):
        run(PACK)
    for hook in hooks:
        hook.remove()
    assert [node() for node in nodes] == [None]
    run(PACK).sums.sum().backward()


def test_values_are_kept_without_queries_and_keys() -> None:
    """For a backward pass, 4 * heads numbers per position are enough: queries, keys, values and the result."""
    kept = {}
    for targets in (["q_proj", "k_proj", "v_proj"], ["q_proj"]):
        model = adapted(random_model(), targets=targets)
        run, _ = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs = run(PACK)
        kept[len(targets)] = sum(storages.values()) / PACK.input_ids.numel()
        del logprobs
    # Two more adapters of rank 4 keep their inner results.
    assert kept[3] <= kept[1] + 2 * 2 * 4 * 4


def test_a_model_that_uses_its_own_forward_pass_has_no_groups() -> None:
    causal_lm = adapted(random_model()).get_base_model()
    fuse_layers(causal_lm)
    unfuse_layers(causal_lm)
    assert not any("_adapter_group" in vars(module) for module in causal_lm.modules())
