"""Each objective compared with its equations in float64, and properties that hold for all of them."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merlina.preflight.time_estimate import DIVERGENCE_METHODS, PROMPT_TARGET_METHODS, REFERENCE_METHODS
from merlina.schemas.datasets.config import TrainingMode
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.method import LossType
from merlina.training.engine.logprobs import Logprobs, sum_by_section
from merlina.training.engine.packing import PackedExample, build_pack
from merlina.training.objectives import COUNT, OBJECTIVES, ObjectiveInputs

pytestmark = pytest.mark.slow

logprob = st.floats(-30, -1e-4)
three_counts = st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
count = st.integers(1, 50)
weight = st.floats(0.1, 10)


def config(mode: str = "orpo", **changes: Any) -> TrainingConfig:
    dataset = {"source": {"source_type": "local_file", "file_path": "x"}}
    content = {"base_model": "x", "output_name": "x", "dataset": dataset, "training_mode": mode}
    return TrainingConfig.model_validate({**content, **changes})


def logprobs(sums: list[float], tokens: list[int]) -> Logprobs:
    return Logprobs(
        torch.tensor([sums], dtype=torch.float64, requires_grad=True), torch.tensor([tokens], dtype=torch.float64)
    )


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -700 else x


def test_every_training_mode_has_an_objective() -> None:
    assert set(OBJECTIVES) == set(get_args(TrainingMode))


def test_the_time_estimate_counts_what_the_objectives_need() -> None:
    assert {mode for mode, objective in OBJECTIVES.items() if objective.needs_reference} == REFERENCE_METHODS
    assert {mode for mode, objective in OBJECTIVES.items() if objective.needs_prompt_targets} == PROMPT_TARGET_METHODS
    assert {mode for mode, objective in OBJECTIVES.items() if objective.needs_divergence} == DIVERGENCE_METHODS


@given(chosen=logprob, rejected=logprob, prompt=logprob, tokens=three_counts, beta=st.floats(0.01, 10))
def test_objectives_without_reference_are_their_equations(
    chosen: float, rejected: float, prompt: float, tokens: tuple[int, int, int], beta: float
) -> None:
    sums = [prompt * tokens[0], chosen * tokens[1], rejected * tokens[2]]
    inputs = ObjectiveInputs(logprobs(sums, list(tokens)))
    odds = [math.exp(value) / -math.expm1(value) for value in (chosen, rejected)]
    nll = -(sums[0] + sums[1]) / (tokens[0] + tokens[1])
    gamma = 0.7
    expected = {
        "orpo": nll - beta * log_sigmoid(math.log(odds[0]) - math.log(odds[1])),
        "simpo": -log_sigmoid(beta * chosen - beta * rejected - gamma),
        "cpo": -log_sigmoid(beta * (sums[1] - sums[2])) - chosen,
        "sft": -chosen,
    }
    for mode, value in expected.items():
        settings = config(mode, beta=beta, simpo_gamma=gamma)
        assert OBJECTIVES[mode].loss(inputs, settings).loss.item() == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(
    policy=st.tuples(logprob, logprob),
    reference=st.tuples(logprob, logprob),
    tokens=st.tuples(count, count),
    beta=st.floats(0.01, 10),
    divergence=st.floats(-3, 3),
    weights=st.tuples(weight, weight),
)
def test_objectives_with_a_reference_are_their_equations(
    policy: tuple[float, float],
    reference: tuple[float, float],
    tokens: tuple[int, int],
    beta: float,
    divergence: float,
    weights: tuple[float, float],
) -> None:
    inputs = ObjectiveInputs(
        logprobs([0, *policy], [0, *tokens]),
        logprobs([0, *reference], [0, *tokens]),
        torch.tensor(divergence, dtype=torch.float64),
    )
    chosen, rejected = policy[0] - reference[0], policy[1] - reference[1]
    z = max(divergence, 0)
    expected = {
        "dpo": -log_sigmoid(beta * (chosen - rejected)),
        "ipo": (chosen / tokens[0] - rejected / tokens[1] - 1 / (2 * beta)) ** 2,
        "kto": (
            weights[0] * (1 - 1 / (1 + math.exp(-beta * (chosen - z))))
            + weights[1] * (1 - 1 / (1 + math.exp(-beta * (z - rejected))))
        )
        / 2,
    }
    for mode, value in expected.items():
        settings = config(mode, beta=beta, desirable_weight=weights[0], undesirable_weight=weights[1])
        losses = OBJECTIVES[mode].loss(inputs, settings)
        assert losses.loss.item() == pytest.approx(value, rel=1e-9, abs=1e-9)
        margin = losses.metrics["reward_margin"].item()
        assert losses.metrics["reward_accuracy"].item() == (0.5 if margin == 0 else margin > 0)


@given(
    policy=st.tuples(logprob, logprob),
    reference=st.tuples(logprob, logprob),
    tokens=st.tuples(count, count),
    beta=st.floats(0.01, 10),
    smoothing=st.floats(0.001, 0.49),
)
def test_losses_of_dpo_are_their_equations(
    policy: tuple[float, float],
    reference: tuple[float, float],
    tokens: tuple[int, int],
    beta: float,
    smoothing: float,
) -> None:
    inputs = ObjectiveInputs(logprobs([0, *policy], [0, *tokens]), logprobs([0, *reference], [0, *tokens]))
    w, l = policy[0] - reference[0], policy[1] - reference[1]  # noqa: E741
    m = beta * (w - l)
    p, gate = math.exp(log_sigmoid(m)), math.exp(log_sigmoid(20 * m))
    expected: dict[str, float] = {
        "sigmoid": -(1 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m),
        "robust": (-(1 - smoothing) * log_sigmoid(m) + smoothing * log_sigmoid(-m)) / (1 - 2 * smoothing),
        "hinge": max(0, 1 - m),
        "exo_pair": p * (log_sigmoid(m) - math.log(1 - smoothing))
        + math.exp(log_sigmoid(-m)) * (log_sigmoid(-m) - math.log(smoothing)),
        "discopop": -log_sigmoid(m) * (1 - gate) + (math.exp(-m) * gate if gate > 0 else 0),
        "apo_zero": 1 - math.exp(log_sigmoid(beta * w)) + math.exp(log_sigmoid(beta * l)),
        "apo_down": math.exp(log_sigmoid(beta * w)) + 1 - p,
        "nca_pair": -log_sigmoid(beta * w) - log_sigmoid(-beta * w) / 2 - log_sigmoid(-beta * l) / 2,
        "bco_pair": -log_sigmoid(beta * w) - log_sigmoid(-beta * l),
        "sppo_hard": (w - 1 / (2 * beta)) ** 2 + (l + 1 / (2 * beta)) ** 2,
    }
    assert set(expected) == set(get_args(LossType))
    for name, value in expected.items():
        settings = config("dpo", beta=beta, loss_type=name, label_smoothing=smoothing)
        assert OBJECTIVES["dpo"].loss(inputs, settings).loss.item() == pytest.approx(value, rel=1e-9, abs=1e-9)
    weights = [0.5 + number for number in range(3)]
    names: list[Any] = ["hinge", "apo_zero", "sppo_hard"]
    combined = config("dpo", beta=beta, loss_type=names, loss_weights=weights)
    total = sum(weight * expected[name] for weight, name in zip(weights, names, strict=True))
    assert OBJECTIVES["dpo"].loss(inputs, combined).loss.item() == pytest.approx(total, rel=1e-9, abs=1e-9)


@given(
    policy=st.tuples(logprob, logprob),
    reference=st.tuples(logprob, logprob),
    tokens=st.tuples(count, count),
    penalty=st.floats(0.1, 50),
)
def test_the_terms_of_dpo_are_their_equations(
    policy: tuple[float, float], reference: tuple[float, float], tokens: tuple[int, int], penalty: float
) -> None:
    inputs = ObjectiveInputs(logprobs([0, *policy], [0, *tokens]), logprobs([0, *reference], [0, *tokens]))
    w, l = policy[0] - reference[0], policy[1] - reference[1]  # noqa: E741
    nll = -policy[0] / tokens[0]
    expected = [
        ({"dpop_weight": penalty}, -log_sigmoid(0.1 * (w - l - penalty * max(0, -w)))),
        ({"dpop_weight": penalty, "loss_type": "hinge"}, max(0, 1 - 0.1 * (w - l - penalty * max(0, -w)))),
        ({"length_normalize": True}, -log_sigmoid(0.1 * (w / tokens[0] - l / tokens[1]))),
        ({"nll_weight": penalty}, -log_sigmoid(0.1 * (w - l)) + penalty * nll),
    ]
    for changes, value in expected:
        losses = OBJECTIVES["dpo"].loss(inputs, config("dpo", **changes))
        assert losses.loss.item() == pytest.approx(value, rel=1e-9, abs=1e-9), changes


def test_ld_alpha_weights_the_tokens_beyond_the_shorter_answer() -> None:
    """Answers of 2 and 3 tokens share two, so that only the third of the rejected answer is weighted."""
    pack = build_pack([PackedExample([1, 2], ([3, 4], [5, 6, 7]))], with_prompt_targets=False, tail_weight=0.25)
    policy = sum_by_section(pack, torch.tensor([-1.0, -2.0, -1.0, -3.0, -8.0]))
    reference = sum_by_section(pack, torch.tensor([-1.5, -1.0, -2.0, -2.0, -4.0]))
    losses = OBJECTIVES["dpo"].loss(ObjectiveInputs(policy, reference), config("dpo", ld_alpha=0.25, nll_weight=1.0))
    chosen, rejected = -3 - -2.5, (-4 + 0.25 * -8) - (-4 + 0.25 * -4)
    assert losses.loss.item() == pytest.approx(-log_sigmoid(0.1 * (chosen - rejected)) + 3 / 2)


@pytest.mark.parametrize("loss_type", get_args(LossType))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_losses_of_dpo_stay_finite_far_from_the_reference(loss_type: str, sign: float) -> None:
    policy = Logprobs(torch.tensor([[0.0, -2000.0 + sign * 1500, -2000.0 - sign * 1500]]), torch.ones(1, 3))
    policy.sums.requires_grad_()
    reference = Logprobs(torch.tensor([[0.0, -2000.0, -2000.0]]), torch.ones(1, 3))
    settings = config("dpo", loss_type=loss_type, label_smoothing=0.1, beta=1.0)
    loss = OBJECTIVES["dpo"].loss(ObjectiveInputs(policy, reference), settings).loss
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(policy.sums.grad).all()


@given(policy=logprob, reference=logprob, tokens=count, beta=st.floats(0.01, 10), label=st.booleans(), weight=weight)
def test_the_loss_of_an_unpaired_answer_is_that_of_its_side_in_a_pair(
    policy: float, reference: float, tokens: int, beta: float, label: bool, weight: float
) -> None:
    settings = config("kto", beta=beta, **{"desirable_weight" if label else "undesirable_weight": weight})
    divergence = torch.tensor(0.3, dtype=torch.float64)
    inputs = ObjectiveInputs(
        logprobs([0, policy], [0, tokens]), logprobs([0, reference], [0, tokens]), divergence, torch.tensor([label])
    )
    found = OBJECTIVES["kto"].loss(inputs, settings)
    ratio = policy - reference
    signed = ratio - 0.3 if label else 0.3 - ratio
    assert found.loss.item() == pytest.approx(weight * (1 - 1 / (1 + math.exp(-beta * signed))), rel=1e-9, abs=1e-9)
    side, other = ("chosen", "rejected") if label else ("rejected", "chosen")
    assert found.metrics[f"rewards_{side}"].item() == pytest.approx(beta * ratio)
    assert found.metrics[f"logps_{side}"].item() == pytest.approx(policy / tokens)
    assert [found.metrics[f"{COUNT}rewards_{name}"].item() for name in (side, other)] == [1, 0]


def test_orpo_stays_finite_if_the_model_is_certain() -> None:
    certain = logprobs([0.0, 0.0, -4.0], [3, 2, 2])
    losses = OBJECTIVES["orpo"].loss(ObjectiveInputs(certain), config())
    losses.loss.sum().backward()
    assert torch.isfinite(losses.loss).all()
    assert torch.isfinite(certain.sums.grad).all()


@pytest.mark.parametrize("mode", [mode for mode in get_args(TrainingMode) if mode != "sft"])
def test_a_tie_counts_as_half_a_pair(mode: str) -> None:
    """A tie counts as guessing does; any difference, however small, decides."""
    same = logprobs([-3.0, -5.0, -5.0], [4, 3, 3])
    reference = logprobs([-3.0, -6.0, -6.0], [4, 3, 3])
    for rejected, accuracy in ((-5.0, 0.5), (-5.000001, 1.0), (-4.999999, 0.0)):
        policy = Logprobs(same.sums.detach().clone(), same.tokens)
        policy.sums[0, 2] = rejected
        losses = OBJECTIVES[mode].loss(ObjectiveInputs(policy, reference, torch.tensor(0.0)), config(mode))
        assert losses.metrics["reward_accuracy"].tolist() == [accuracy]
