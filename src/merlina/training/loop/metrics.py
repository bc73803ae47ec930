"""Metrics of steps and evaluations: means over pairs, throughput and memory."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from merlina.domain.units import GIB
from merlina.training.distributed.ranks import Ranks
from merlina.training.objectives import COUNT


class RunningMeans:
    """Means of per-pair metrics, each over the pairs that it applies to.

    Sums stay on the device until they are needed, so that adding metrics does not synchronize with the GPU.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        # Sums of passes that are still on the device: the names of metrics, and a sum of each.
        self._on_device: list[tuple[list[str], Tensor]] = []
        self._pairs = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of pairs, each of shape [U]; see PairLosses for those that apply to some pairs only."""
        values = torch.stack([value.detach() for value in metrics.values()])
        # float64 on a CPU, where it is free; some GPUs do not support it.
        sums = values.double().sum(1) if values.device.type == "cpu" else values.float().sum(1)
        self._on_device.append((list(metrics), sums))

    def gather(self, ranks: Ranks, pairs: int) -> None:
        """Add up the sums of all ranks, which cover `pairs` pairs together."""
        # A rank sums the pairs of its own passes; each metric of a step is over all of its pairs.
        self._sums = ranks.sum_metrics(self._transferred())
        self._pairs = pairs

    def _transferred(self) -> dict[str, float]:
        """Return all sums, after one transfer from the device."""
        if self._on_device:
            names = [name for pass_names, _ in self._on_device for name in pass_names]
            values = torch.cat([sums for _, sums in self._on_device]).tolist()
            self._on_device = []
            for name, value in zip(names, values, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
        return self._sums

    def merge(self, other: RunningMeans) -> None:
        """Add the sums of other pairs, which have the same metrics."""
        sums = self._transferred()
        for name, total in other._transferred().items():
            sums[name] = sums.get(name, 0.0) + total
        self._pairs += other._pairs

    def state(self) -> dict[str, Any]:
        """Return the sums so far in a form for JSON, from which `restore` continues."""
        return {"sums": self._transferred(), "pairs": self._pairs}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the sums of `state`."""
        self._sums, self._pairs = dict(state["sums"]), state["pairs"]

    def take(self) -> dict[str, float]:
        """Return the means and reset the sums."""
        means = self.means()
        self._sums, self._pairs = {}, 0
        return means

    def means(self) -> dict[str, float]:
        """Return the means so far. A metric that applies to none of the pairs is left out."""
        sums = self._transferred()
        means = {}
        for name, total in sums.items():
            pairs = sums.get(f"{COUNT}{name}", max(self._pairs, 1))
            if not name.startswith(COUNT) and pairs:
                means[name] = total / pairs
        if "rewards_chosen" in means and "rewards_rejected" in means:
            # Unpaired answers have no margin of their own.
            means.setdefault("reward_margin", means["rewards_chosen"] - means["rewards_rejected"])
        return means


def evaluation_metrics(means_by_set: Mapping[str, RunningMeans]) -> dict[str, float]:
    """Return the metrics of an evaluation over the pairs of all sets; their names begin with `eval_`.

    With several sets, the metrics of each set are included, such as `eval_loss/news`.
    """
    overall, by_set = RunningMeans(), dict[str, float]()
    for name, means in means_by_set.items():
        by_set |= {f"eval_{metric}/{name}": value for metric, value in means.means().items()}
        overall.merge(means)
    metrics = {f"eval_{metric}": value for metric, value in overall.take().items()}
    return metrics | by_set if len(means_by_set) > 1 else metrics


class MetricsWindow:
    """The metrics of the optimizer steps since the last report: the loss is a mean over steps, the rest over pairs.

    A checkpoint between two reports includes them, so that the first report after a resume covers all of its steps.
    """

    _FILE = "metrics.json"

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._means = RunningMeans()

    def add(self, loss: float, means: RunningMeans) -> None:
        """Add the loss of a step and the means over its pairs."""
        self._losses.append(loss)
        self._means.merge(means)

    def take(self) -> dict[str, float]:
        """Return the means and start the next window."""
        metrics = {"loss": sum(self._losses) / max(len(self._losses), 1), **self._means.take()}
        self._losses = []
        return metrics

    def save(self, checkpoint: Path) -> None:
        """Write the window into the folder of a checkpoint."""
        state = {"losses": self._losses, "means": self._means.state()}
        (checkpoint / self._FILE).write_text(json.dumps(state))

    def restore(self, checkpoint: Path) -> None:
        """Continue the window of the run that wrote the checkpoint. Checkpoints of early versions have no such file."""
        file = checkpoint / self._FILE
        if file.is_file():
            state = json.loads(file.read_bytes())
            self._losses = state["losses"]
            self._means.restore(state["means"])


class Throughput:
    """The throughput of training in tokens per second, excluding evaluations and the time before the first step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = 0
        self._since: float | None = None

    def start(self) -> None:
        """Start the clock, if it is not running."""
        if self._since is None:
            self._since = self._clock()

    def add(self, tokens: int) -> None:
        """Add the tokens of a step: a prompt's count once for each of its answers."""
        self._tokens += tokens

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside this context."""
        began = self._clock()
        yield
        if self._since is not None:
            self._since += self._clock() - began

    def take(self) -> float:
        """Return the throughput since the last call."""
        now = self._clock()
        # Before the first step there is no start; the bound avoids a division by zero.
        speed = self._tokens / max(now - (now if self._since is None else self._since), 1e-9)
        self._tokens, self._since = 0, now
        return speed


def memory_metrics() -> dict[str, float]:
    """Return the resident RAM of this process and, with a GPU, its peak GPU memory, in GiB."""
    held = {"memory_gib": psutil.Process().memory_info().rss / GIB}
    if torch.cuda.is_available():
        # Reserved, not allocated: what the process occupies as others see it.
        held["gpu_memory"] = torch.cuda.max_memory_reserved() / GIB
    return held
