"""Throughput, measured with a simulated clock, and means over pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from merlina.training.distributed.ranks import SINGLE_PROCESS
from merlina.training.loop.metrics import MetricsWindow, RunningMeans, Throughput

pytestmark = pytest.mark.slow


def test_throughput_counts_from_the_first_step_and_leaves_evaluations_out() -> None:
    now = [100.0]
    throughput = Throughput(lambda: now[0])
    with throughput.paused():
        now[0] += 50
    now[0] += 50
    throughput.start()
    now[0] += 4
    throughput.add(300)
    with throughput.paused():
        now[0] += 1000
    throughput.start()
    now[0] += 2
    throughput.add(300)
    assert throughput.take() == pytest.approx(100)
    now[0] += 3
    throughput.add(30)
    assert throughput.take() == pytest.approx(10)


def unpaired(*rewards: tuple[float, bool]) -> dict[str, torch.Tensor]:
    """Return the rewards of unpaired answers with their labels, as metrics of a pass."""
    labels = [label for _, label in rewards]
    metrics = {"divergence": torch.tensor([0.5] * len(rewards))}
    for name, applies in (("chosen", labels), ("rejected", [not label for label in labels])):
        values = [reward if applied else 0.0 for (reward, _), applied in zip(rewards, applies, strict=True)]
        metrics[f"rewards_{name}"] = torch.tensor(values)
        metrics[f"count:rewards_{name}"] = torch.tensor(applies, dtype=torch.float32)
    return metrics


def step_means(*passes: dict[str, torch.Tensor]) -> RunningMeans:
    means = RunningMeans()
    for metrics in passes:
        means.add(metrics)
    means.gather(SINGLE_PROCESS, sum(len(metrics["divergence"]) for metrics in passes))
    return means


def test_a_metric_of_some_pairs_is_a_mean_over_those() -> None:
    found = step_means(unpaired((2.0, True), (-1.0, False)), unpaired((4.0, True), (6.0, True))).take()
    assert found == {"divergence": 0.5, "rewards_chosen": 4.0, "rewards_rejected": -1.0, "reward_margin": 5.0}


def test_a_metric_that_applies_to_no_pair_is_left_out() -> None:
    assert step_means(unpaired((2.0, True))).take() == {"divergence": 0.5, "rewards_chosen": 2.0}


def test_a_window_continues_from_its_checkpoint_with_metrics_of_some_pairs(tmp_path: Path) -> None:
    window = MetricsWindow()
    window.add(1.0, step_means(unpaired((2.0, True), (0.0, True), (-3.0, False))))
    window.save(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["means"]["pairs"] == 3
    resumed = MetricsWindow()
    resumed.restore(tmp_path)
    for each in (window, resumed):
        each.add(3.0, step_means(unpaired((4.0, True))))
        taken = each.take()
        assert taken["loss"] == 2.0
        assert taken["rewards_chosen"] == 2.0
        assert taken["reward_margin"] == 5.0
