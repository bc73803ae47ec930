"""What is reported of steps and evaluations: means over pairs, speed, and the memory that is held."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from merlina.domain.units import GIB
from merlina.training.distributed.ranks import Ranks


class RunningMeans:
    """Running means of per-pair metrics; the sums stay on the device until they are taken or gathered."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._pairs = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, values in metrics.items():
            total = values.detach().double().sum() if values.device.type == "cpu" else values.detach().sum()
            self._sums[name] = self._sums.get(name, 0.0) + total

    def gather(self, ranks: Ranks, pairs: int) -> None:
        """Adds the sums of all ranks, which are over so many pairs."""
        self._sums = {**ranks.sum_metrics({name: float(total) for name, total in self._sums.items()})}
        self._pairs = pairs

    def merge(self, other: RunningMeans) -> None:
        for name, total in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + total
        self._pairs += other._pairs

    def state(self) -> dict[str, Any]:
        """The sums so far, as plain numbers that `restore` takes."""
        return {"sums": {name: float(total) for name, total in self._sums.items()}, "pairs": self._pairs}

    def restore(self, state: dict[str, Any]) -> None:
        self._sums, self._pairs = dict(state["sums"]), state["pairs"]

    def take(self) -> dict[str, float]:
        means = {name: float(total) / max(self._pairs, 1) for name, total in self._sums.items()}
        self._sums, self._pairs = {}, 0
        return means


class MetricsWindow:
    """The metrics of the optimizer steps since the last row: each step's loss weighs the same, and so does each pair.

    A checkpoint taken between two rows keeps them, so that the row after a resume covers all of its steps.
    """

    _FILE = "metrics.json"

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._means = RunningMeans()

    def add(self, loss: float, means: RunningMeans) -> None:
        """Add one step. `means` are those of its pairs."""
        self._losses.append(loss)
        self._means.merge(means)

    def take(self) -> dict[str, float]:
        """Return the means and begin the next row."""
        metrics = {"loss": sum(self._losses) / max(len(self._losses), 1), **self._means.take()}
        self._losses = []
        return metrics

    def save(self, checkpoint: Path) -> None:
        state = {"losses": self._losses, "means": self._means.state()}
        (checkpoint / self._FILE).write_text(json.dumps(state))

    def restore(self, checkpoint: Path) -> None:
        """Continue as the run that wrote the checkpoint would have. Older checkpoints have no such file."""
        file = checkpoint / self._FILE
        if file.is_file():
            state = json.loads(file.read_bytes())
            self._losses = state["losses"]
            self._means.restore(state["means"])


class Throughput:
    """Tokens per second of training, from its first step on and without the time of evaluations."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = 0
        self._since: float | None = None

    def start(self) -> None:
        """Does nothing once it was started."""
        if self._since is None:
            self._since = self._clock()

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no training."""
        began = self._clock()
        yield
        if self._since is not None:
            self._since += self._clock() - began

    def take(self) -> float:
        """Of what was added since it was last taken."""
        now = self._clock()
        speed = self._tokens / max(now - (now if self._since is None else self._since), 1e-9)
        self._tokens, self._since = 0, now
        return speed


def memory() -> dict[str, float]:
    """What this process holds: peak GPU memory where there is a GPU, and resident RAM, in GiB."""
    held = {"memory_gib": psutil.Process().memory_info().rss / GIB}
    if torch.cuda.is_available():
        held["gpu_memory"] = torch.cuda.max_memory_reserved() / GIB
    return held
