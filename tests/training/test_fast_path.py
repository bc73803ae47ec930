"""Packs give the log-probabilities and gradients of the model on padded texts, in every family."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from merlina.training.engine.attention.pack_attention import packing_obstacle
from merlina.training.engine.fast_path import choose_logprob_model, shorten_for_trial
from merlina.training.engine.layers import fuse_layers
from merlina.training.engine.logprobs import LogprobModel, PaddedModel
from merlina.training.engine.packing import Pack, PackedExample, build_pack
from tests.training.families import tiny_model
from tests.training.models import EXAMPLES, FAMILIES, TARGETS, adapted, assert_same_gradients, gradients, random_model

pytestmark = pytest.mark.slow

PACK = build_pack(EXAMPLES, with_prompt_targets=True)


def loss_and_gradients(model: Any, run: LogprobModel, packs: list[Pack]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return a loss in which every section of every example has its own weight, and its gradients."""
    model.zero_grad()
    total = 0.0
    for pack in packs:
        logprobs = run(pack)
        weights = torch.tensor([0.3, 1.0, -0.7]) * (1 + torch.tensor([len(u.prompt) for u in pack.examples]))[:, None]
        loss = (logprobs.sums / logprobs.tokens.clamp(min=1) * weights).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_log_probabilities_and_gradients(family: str) -> None:
    model = random_model(family)
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = [name for name in [*TARGETS, "qkv_proj", "gate_up_proj", "dense", "fc1", "fc2"] if name in names]
    model = adapted(model, targets=targets)
    expected = loss_and_gradients(model, PaddedModel(model, 0), [PACK])
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason is None
    found = loss_and_gradients(model, run, [PACK])
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert_same_gradients(found[1], expected[1], 1e-4)


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kernels_and_recomputation_change_nothing(implementation: Any, checkpointing: bool) -> None:
    model = adapted(random_model("Mistral"))
    expected = loss_and_gradients(model, PaddedModel(model, 0), [PACK])
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    run, reason = choose_logprob_model(model, PACK, 0, implementation, nullcontext())
    assert reason is None
    found = loss_and_gradients(model, run, [PACK])
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert_same_gradients(found[1], expected[1], 1e-4)


@pytest.mark.parametrize("cut", [[5], [2, 3], [1, 3, 1], [1, 1, 1, 1, 1]])
def test_the_division_into_packs_changes_no_gradient(cut: list[int]) -> None:
    model = adapted(random_model())
    run, _ = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    whole = loss_and_gradients(model, run, [PACK])
    begins = [sum(cut[:number]) for number in range(len(cut))]
    packs = [
        build_pack(EXAMPLES[at : at + size], with_prompt_targets=True) for at, size in zip(begins, cut, strict=True)
    ]
    parts = loss_and_gradients(model, run, packs)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert_same_gradients(parts[1], whole[1], 1e-5)


def test_all_weights_get_their_gradients_if_all_are_trained() -> None:
    model = random_model()
    expected = loss_and_gradients(model, PaddedModel(model, 0), [PACK])
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason is None
    found = loss_and_gradients(model, run, [PACK])
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert_same_gradients(found[1], expected[1], 1e-4)


@pytest.mark.parametrize("family", ["Llama", "Gemma3Text", "Phi"])
def test_gradients_in_16_bits_are_as_accurate_as_the_models_own(family: str) -> None:
    """With float32 weights under autocast, queries and keys have another dtype than values."""

    class InBits:
        """Runs forward passes under autocast and backward passes without, as training does."""

        def __init__(self, run: LogprobModel) -> None:
            self.batching, self._run = run.batching, run

        def __call__(self, pack: Pack) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self._run(pack)

    model = random_model(family)
    exact = loss_and_gradients(model, PaddedModel(model, 0), [PACK])
    padded = loss_and_gradients(model, InBits(PaddedModel(model, 0)), [PACK])
    run, reason = choose_logprob_model(model, PACK, 0, "auto", torch.autocast("cpu", dtype=torch.bfloat16))
    assert reason is None
    found = loss_and_gradients(model, InBits(run), [PACK])
    assert found[0] == pytest.approx(exact[0], rel=2e-3)
    ours, theirs = (
        sum(float((of[1][name] - gradient).norm() / gradient.norm()) for name, gradient in exact[1].items())
        for of in (found, padded)
    )
    assert ours < 1.2 * theirs


def test_a_model_whose_packed_backward_pass_fails_uses_its_own_forward_pass() -> None:
    model = adapted(random_model())

    def refuse(_: Any, __: Any, named: dict[str, Any], output: Any) -> None:
        def fail(_: torch.Tensor) -> None:
            raise RuntimeError("no kernel")

        if "packed" in named and output[0].requires_grad:
            output[0].register_hook(fail)

    model.get_base_model().model.layers[0].self_attn.register_forward_hook(refuse, with_kwargs=True)
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason == "has layers that fail on packed texts"
    assert all(weight.grad is None for weight in model.parameters())
    loss_and_gradients(model, run, [PACK])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_a_fused_feed_forward_has_the_right_activation(activation: str) -> None:
    """The two forms of GELU are nearly equal."""
    causal_lm = adapted(random_model(hidden_act=activation)).get_base_model()
    feed_forward = causal_lm.model.layers[1].mlp
    x = 5 * torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = feed_forward(x)
        fuse_layers(causal_lm)
        assert "forward" in vars(feed_forward)
        assert (feed_forward(x) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_feed_forward_with_any_other_activation_is_left_as_it_is() -> None:
    causal_lm = adapted(random_model(hidden_act="relu")).get_base_model()
    fuse_layers(causal_lm)
    assert "forward" not in vars(causal_lm.model.layers[1].mlp)


def test_dropout_drops_the_configured_share_and_keeps_the_mean() -> None:
    model = adapted(random_model(), dropout=0.25)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.ones(400, 32)
    layer.eval()
    without = layer(x)
    base = layer.base_layer(x)
    choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    layer.train()
    torch.manual_seed(0)
    runs = torch.stack([layer(x) for _ in range(50)])
    assert not torch.equal(runs[0], runs[1])
    assert torch.allclose((runs - base).mean((0, 1)), (without - base)[0], atol=0.01)


def test_an_adapter_that_is_off_leaves_the_model_as_it_was() -> None:
    model = adapted(random_model())
    run, _ = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    with torch.no_grad(), model.disable_adapter():
        found = run(PACK)
    plain = random_model()
    with torch.no_grad():
        expected = PaddedModel(plain, 0)(PACK)
    assert torch.allclose(found.sums, expected.sums, rtol=1e-4, atol=1e-4)


def test_a_model_with_attention_dropout_uses_its_own_forward_pass() -> None:
    model = adapted(random_model(attention_dropout=0.1))
    before = torch.get_rng_state()
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason == "drops out attention weights in training, which packed attention does not do"
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    loss_and_gradients(model, run, [PACK])


def test_structural_obstacles_are_those_that_checks_report_before_a_run() -> None:
    """The helper calls `packing_obstacle` on a model without weights; the run must decide by the same function."""
    sinks, linear = random_model(), random_model()
    sinks.model.layers[0].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    linear.config.layer_types = ["linear_attention", "full_attention"]
    for model, reason in ((sinks, "has attention sinks"), (linear, "has layers of the kind linear_attention")):
        obstacle = packing_obstacle(model)
        assert obstacle is not None
        assert obstacle.startswith(reason)
        assert choose_logprob_model(model, PACK, 0, "auto", nullcontext())[1] == obstacle
    assert packing_obstacle(random_model()) is None


def test_a_state_space_model_uses_its_own_forward_pass() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason is not None
    assert isinstance(run, PaddedModel)
    assert torch.isfinite(run(PACK).sums).all()


@pytest.mark.parametrize("with_prompt_targets", [False, True])
def test_a_prompt_of_one_token_may_come_first_in_a_padded_pass(with_prompt_targets: bool) -> None:
    model = random_model()
    packs = [
        build_pack(order, with_prompt_targets=with_prompt_targets) for order in (EXAMPLES, EXAMPLES[2:] + EXAMPLES[:2])
    ]
    with torch.no_grad():
        first, moved = (PaddedModel(model, 0)(pack).sums for pack in packs)
    assert torch.allclose(moved, torch.cat((first[2:], first[:2])), atol=1e-5)


def test_the_trial_reaches_beyond_what_short_texts_show() -> None:
    """The layer is wrong in packs only at late positions."""

    def shift(_: Any, __: Any, named: dict[str, Any], output: Any) -> Any:
        if "packed" not in named or output.shape[1] < 60:
            return output
        return torch.cat((output[:, :60], output[:, 60:].flip(-1)), dim=1)

    draw = torch.Generator().manual_seed(0)
    longest = PackedExample([5] * 30, (torch.randint(5, 60, (60,), generator=draw).tolist(), [6, 2]))
    reasons = []
    for long_trial in (None, build_pack([EXAMPLES[0], longest], with_prompt_targets=True)):
        model = adapted(random_model())
        model.get_base_model().model.layers[0].register_forward_hook(shift, with_kwargs=True)
        reasons.append(choose_logprob_model(model, PACK, 0, "auto", nullcontext(), long_trial)[1])
    assert reasons[0] is None
    assert (reasons[1] or "").startswith("gives other log-probabilities on packed texts")


def test_a_long_trial_crosses_the_models_windows() -> None:
    config = random_model("Mistral", sliding_window=4096).config
    example = PackedExample([5] * 5000, ([6] * 1000, [7] * 300))
    assert shorten_for_trial(config, example) == PackedExample([5] * 4160, ([6] * 64, [7] * 64))
    short = PackedExample([5] * 900, ([6] * 100, [7] * 3000))
    assert shorten_for_trial(random_model(max_position_embeddings=8192).config, short) == PackedExample(
        [5] * 448, ([6] * 64, [7] * 64)
    )
    assert shorten_for_trial(config, EXAMPLES[0]) == EXAMPLES[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_adapters_on_the_parameters_of_experts_keep_packs() -> None:
    """The model also has a shared expert, whose layers are an ordinary feed-forward."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model("deepseek_v3")
    targets = ["q_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    parameters = ("experts.gate_up_proj", "experts.down_proj")
    names = [name for name, _ in model.named_parameters() if name.endswith(parameters)]
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=targets, target_parameters=names, init_lora_weights=False
    )
    model = get_peft_model(model, settings).eval()
    expected = loss_and_gradients(model, PaddedModel(model, 0), [PACK])
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason is None
    found = loss_and_gradients(model, run, [PACK])
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert_same_gradients(found[1], expected[1], 1e-4)


def test_a_model_that_fails_the_trial_gets_its_own_layers_back() -> None:
    from transformers import LlamaForCausalLM

    class Sharper(LlamaForCausalLM):
        """Changes its logits in a way that its configuration does not show."""

        def forward(self, *arguments: Any, **others: Any) -> Any:
            output = super().forward(*arguments, **others)
            output.logits = output.logits * 1.5
            return output

    plain = random_model()
    model = adapted(Sharper(plain.config))
    expected = loss_and_gradients(model, PaddedModel(model, 0), [PACK])
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason is not None
    assert reason.startswith("gives other log-probabilities on packed texts than on each text alone")
    assert model.get_base_model().config._attn_implementation == "sdpa"
    found = loss_and_gradients(model, run, [PACK])
    assert found[0] == expected[0]
    assert_same_gradients(found[1], expected[1], 0)
