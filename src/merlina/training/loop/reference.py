"""The reference: log-probabilities under the model before training, computed once and stored for epochs and resumes."""

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
    """An item of the Trainer's batches: a pair with its row number and what the objective needs of the reference.

    `reference` holds the reference's log-probability of each answer. `unrelated` is the prompt with the answer of
    another pair, and `unrelated_reference` the reference's log-probability of that answer. `label` is that of an
    unpaired answer. Each is None if the objective does not need it.
    """

    example: PackedExample
    row: int = 0
    reference: Tensor | None = None  # [A]
    unrelated: PackedExample | None = None
    unrelated_reference: Tensor | None = None  # scalar
    label: bool | None = None


ComputeLogprobs = Callable[[Sequence[PackedExample]], Iterator[tuple[list[int], Tensor]]]
"""Yields the log-probabilities of answers, a few examples at a time: indices of u examples, and a tensor [u, A]."""


def unrelated_examples(examples: Sequence[PackedExample], max_length: int) -> list[PackedExample]:
    """Return each prompt with the chosen answer of the nearest preceding example that has another prompt.

    Texts are truncated to `max_length` tokens. Another answer to the same prompt would be related to it; only if all
    prompts are equal, the nearest different answer is used. Example with pairs (prompt, answer) a1, a2, b3, where the
    first example follows the last as in a circle: the results are a3, a3, b2.
    """
    others = _nearest_others([example.prompt for example in examples]) or _nearest_others(
        [example.answers[0] for example in examples]
    )
    return [
        PackedExample(example.prompt, (examples[other].answers[0][: max_length - len(example.prompt)],))
        for example, other in zip(examples, others or range(len(examples)), strict=True)
    ]


def _nearest_others(texts: Sequence[list[int]]) -> list[int]:
    """Return for each text the index of the nearest different one before it, in a circle; empty if all are equal."""
    nearest = [-1] * len(texts)
    # The second round completes texts at the beginning whose preceding texts, at the end of the circle, equal them.
    for index in (*range(len(texts)), *range(len(texts))):
        before = (index - 1) % len(texts)
        nearest[index] = before if texts[before] != texts[index] else nearest[before]
    return nearest if -1 not in nearest else []


def equal_examples(examples: Sequence[PackedExample]) -> list[list[int]]:
    """Group the indices of examples that have the same texts, in the order of the first of each group.

    The weight of a source repeats its pairs, whose log-probabilities are the same. Texts a, b, a give [[0, 2], [1]].
    """
    groups: dict[bytes, list[int]] = {}
    for index, example in enumerate(examples):
        digest = blake2b(digest_size=16)
        _update(digest, example)
        groups.setdefault(digest.digest(), []).append(index)
    return list(groups.values())


def reference_logprobs(
    name: str,
    examples: Sequence[PackedExample],
    compute: ComputeLogprobs,
    model: Any,
    folder: Path,
    *,
    resuming: bool,
    stores: bool,
) -> Tensor:
    """Return the reference's log-probability of each answer, shape [U, A].

    Values stored in `folder` for exactly these examples are reused; the rest is computed with the adapter disabled. The
    process that `stores` them writes all values so far, also when the computation is interrupted.

    Raises TrainingError if nothing is stored and the model, trained without an adapter, has already changed.
    """
    path, fingerprint = folder / f"{name}-{_FILE}", _fingerprint(examples)
    found = _load(path, fingerprint)
    if found is None:
        found = torch.full((len(examples), len(examples[0].answers)), torch.nan)
    # An interrupted computation leaves NaN in rows that are still missing.
    missing = found.isnan().any(1).nonzero().flatten()  # [m]
    if not len(missing):
        return found
    has_adapter = hasattr(model, "disable_adapter")
    if resuming and not has_adapter:
        raise TrainingError(
            f"The reference's log-probabilities in {path} are missing or belong to other data, and the model has "
            "changed since. Resume with force=true to start over at step 1"
        )
    # The reference has no dropout.
    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter() if has_adapter else contextlib.nullcontext():
            for indices, logprobs in compute([examples[index] for index in missing.tolist()]):
                found[missing[indices]] = logprobs.cpu()
    finally:
        if stores:
            _save(path, found, fingerprint)
    model.train(was_training)
    return found


def load_reference_logprobs(name: str, examples: Sequence[PackedExample], folder: Path) -> Tensor | None:
    """Return what `reference_logprobs` stored for these examples, shape [U, A]; None if any value is missing."""
    found = _load(folder / f"{name}-{_FILE}", _fingerprint(examples))
    return None if found is None or found.isnan().any() else found


def _save(path: Path, found: Tensor, fingerprint: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    # Written under a temporary name and renamed: the file is complete or absent after a crash.
    save_file({"logprobs": found}, temporary, metadata={"fingerprint": fingerprint})
    sync(temporary)
    reach(FaultPoint.START_REFERENCE_WRITTEN)
    temporary.replace(path)
    sync(path.parent)


def _load(path: Path, fingerprint: str) -> Tensor | None:
    """Return the stored values, shape [U, A], NaN where they are not computed yet; None if there are none."""
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
        _update(digest, example)
    return digest.hexdigest()


def _update(digest: blake2b, example: PackedExample) -> None:
    for section in (example.prompt, *example.answers):
        digest.update(torch.tensor(section, dtype=torch.int64).numpy().tobytes())
        # Separates texts: [1, 2], [3] and [1], [2, 3] must differ.
        digest.update(b"|")
