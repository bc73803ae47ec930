"""Log-probabilities under the model as it was at the beginning: computed once, kept for every epoch and resume."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from merlina.errors import TrainingError
from merlina.training.packing import SharedPrompt

_FILE = "reference.safetensors"


@dataclass(frozen=True)
class Example:
    """A pair as an objective sees it, with the number of its row.

    `reference` holds the reference's log-probability of each answer; `unrelated` is the prompt with another pair's
    answer, whose reference log-probability is `unrelated_reference`. None where the objective doesn't ask for it.
    """

    unit: SharedPrompt
    row: int = 0
    reference: Tensor | None = None  # [A]
    unrelated: SharedPrompt | None = None
    unrelated_reference: Tensor | None = None  # []


Run = Callable[[Sequence[SharedPrompt]], Tensor]
"""Units to the log-probabilities of their answers, [U, A], without a graph."""


def unrelated_units(units: Sequence[SharedPrompt], max_length: int) -> list[SharedPrompt]:
    """Each prompt with the chosen answer of the unit before it, cut to `max_length` tokens."""
    return [
        SharedPrompt(unit.prompt, (units[index - 1].answers[0][: max_length - len(unit.prompt)],))
        for index, unit in enumerate(units)
    ]


def reference_logprobs(
    name: str, units: Sequence[SharedPrompt], run: Run, model: Any, folder: Path, *, resuming: bool, keeps: bool
) -> Tensor:
    """[U, A], from `folder` where they were kept for just these units, else computed with the adapter off.

    What was computed is kept where this process `keeps` it.

    Raises TrainingError where a model trained as a whole has moved on and nothing was kept.
    """
    path, fingerprint = folder / f"{name}-{_FILE}", _fingerprint(units)
    kept = _kept(path, fingerprint)
    if kept is not None:
        return kept
    has_adapter = hasattr(model, "disable_adapter")
    if resuming and not has_adapter:
        raise TrainingError(f"{path} is gone, and the model has changed since: begin this run anew")
    was_training = model.training
    model.eval()
    with model.disable_adapter() if has_adapter else contextlib.nullcontext():
        found = run(units).cpu()
    model.train(was_training)
    if not keeps:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    save_file({"logprobs": found}, beside, metadata={"fingerprint": fingerprint})
    beside.replace(path)
    return found


def _kept(path: Path, fingerprint: str) -> Tensor | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        same = (file.metadata() or {}).get("fingerprint") == fingerprint
        return file.get_tensor("logprobs") if same else None


def _fingerprint(units: Sequence[SharedPrompt]) -> str:
    digest = blake2b(digest_size=16)
    for unit in units:
        for part in (unit.prompt, *unit.answers):
            digest.update(torch.tensor(part, dtype=torch.int64).numpy().tobytes())
            digest.update(b"|")
    return digest.hexdigest()
