"""Log-probabilities under the model as it was at the beginning: computed once, kept for every epoch and resume."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merlina.checkpoints import sync
from merlina.errors import TrainingError
from merlina.faults import FaultPoint, reach
from merlina.training.engine.packing import PackedExample

_FILE = "reference.safetensors"


@dataclass(frozen=True)
class BatchItem:
    """A pair as an objective sees it, with the number of its row.

    `reference` holds the reference's log-probability of each answer; `unrelated` is the prompt with another pair's
    answer, whose reference log-probability is `unrelated_reference`. None where the objective doesn't ask for it.
    """

    example: PackedExample
    row: int = 0
    reference: Tensor | None = None  # [A]
    unrelated: PackedExample | None = None
    unrelated_reference: Tensor | None = None  # []


Run = Callable[[Sequence[PackedExample]], Iterator[tuple[list[int], Tensor]]]
"""Units to the log-probabilities of their answers, some examples at a time: indices of u of them, and [u, A]."""


def unrelated_examples(examples: Sequence[PackedExample], max_length: int) -> list[PackedExample]:
    """Each prompt with the chosen answer of the nearest example before it that has another, cut to `max_length` tokens.

    Several answers to one prompt are no strangers to it. Where there is but one prompt, another answer must do.
    """
    others = _nearest_others([example.prompt for example in examples]) or _nearest_others(
        [example.answers[0] for example in examples]
    )
    return [
        PackedExample(example.prompt, (examples[other].answers[0][: max_length - len(example.prompt)],))
        for example, other in zip(examples, others or range(len(examples)), strict=True)
    ]


def _nearest_others(texts: Sequence[list[int]]) -> list[int]:
    """For each the index of the nearest different one before it, the last coming before the first; none if all are the
    same."""
    nearest = [-1] * len(texts)
    # Twice around: what the first ones find may lie behind others that are as they are.
    for index in (*range(len(texts)), *range(len(texts))):
        before = (index - 1) % len(texts)
        nearest[index] = before if texts[before] != texts[index] else nearest[before]
    return nearest if -1 not in nearest else []


def reference_logprobs(
    name: str, examples: Sequence[PackedExample], run: Run, model: Any, folder: Path, *, resuming: bool, keeps: bool
) -> Tensor:
    """[U, A], from `folder` where they were kept for just these examples, else computed with the adapter off.

    What was computed is kept where this process `keeps` it, also when it is broken off halfway.

    Raises TrainingError where a model trained as a whole has moved on and nothing was kept.
    """
    path, fingerprint = folder / f"{name}-{_FILE}", _fingerprint(examples)
    found = _kept(path, fingerprint)
    if found is None:
        found = torch.full((len(examples), len(examples[0].answers)), torch.nan)
    missing = found.isnan().any(1).nonzero().flatten()  # [m]
    if not len(missing):
        return found
    has_adapter = hasattr(model, "disable_adapter")
    if resuming and not has_adapter:
        raise TrainingError(
            f"The reference's log-probabilities in {path} are missing or belong to other data, and the model has "
            "changed since: resume with force=true to start over at step 1"
        )
    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter() if has_adapter else contextlib.nullcontext():
            for indices, logprobs in run([examples[index] for index in missing.tolist()]):
                found[missing[indices]] = logprobs.cpu()
    finally:
        if keeps:
            _keep(path, found, fingerprint)
    model.train(was_training)
    return found


def load_reference_logprobs(name: str, examples: Sequence[PackedExample], folder: Path) -> Tensor | None:
    """[U, A], as `reference_logprobs` has kept it for these examples; None where some are missing."""
    found = _kept(folder / f"{name}-{_FILE}", _fingerprint(examples))
    return None if found is None or found.isnan().any() else found


def _keep(path: Path, found: Tensor, fingerprint: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    save_file({"logprobs": found}, beside, metadata={"fingerprint": fingerprint})
    sync(beside)
    reach(FaultPoint.START_REFERENCE_WRITTEN)
    beside.replace(path)
    sync(path.parent)


def _kept(path: Path, fingerprint: str) -> Tensor | None:
    """[U, A], not a number where it isn't known yet"""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            same = (file.metadata() or {}).get("fingerprint") == fingerprint
            return file.get_tensor("logprobs") if same else None
    except SafetensorError:
        return None


def _fingerprint(examples: Sequence[PackedExample]) -> str:
    digest = blake2b(digest_size=16)
    for example in examples:
        for part in (example.prompt, *example.answers):
            digest.update(torch.tensor(part, dtype=torch.int64).numpy().tobytes())
            digest.update(b"|")
    return digest.hexdigest()
