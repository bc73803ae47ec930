"""The reference: log-probabilities under the model before training, computed once and stored for epochs and resumes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
# The key of the examples' digest in the file's metadata. Files of earlier attempts have this name, so it stays.
_DIGEST = "fingerprint"


ComputeLogprobs = Callable[[Sequence[PackedExample]], Iterator[tuple[list[int], Tensor]]]
"""Yields the log-probabilities of answers, a few examples at a time: indices of u examples, and a tensor [u, A]."""


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
    path, digest = folder / f"{name}-{_FILE}", digest_of(examples)
    found = _load(path, digest)
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
            _save(path, found, digest)
    model.train(was_training)
    return found


def load_reference_logprobs(name: str, examples: Sequence[PackedExample], folder: Path) -> Tensor | None:
    """Return what `reference_logprobs` stored for these examples, shape [U, A]; None if any value is missing."""
    found = _load(folder / f"{name}-{_FILE}", digest_of(examples))
    return None if found is None or found.isnan().any() else found


def _save(path: Path, found: Tensor, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    # Written under a temporary name and renamed: the file is complete or absent after a crash.
    save_file({"logprobs": found}, temporary, metadata={_DIGEST: digest})
    sync(temporary)
    reach(FaultPoint.START_REFERENCE_WRITTEN)
    temporary.replace(path)
    sync(path.parent)


def _load(path: Path, digest: str) -> Tensor | None:
    """Return the stored values, shape [U, A], NaN where they are not computed yet; None if there are none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            same = (file.metadata() or {}).get(_DIGEST) == digest
            return file.get_tensor("logprobs") if same else None
    except SafetensorError:
        return None


def digest_of(examples: Sequence[PackedExample]) -> str:
    """Return a digest of the examples' token ids, 128 bits in hexadecimal."""
    digest = blake2b(digest_size=16)
    for section in (section for example in examples for section in (example.prompt, *example.answers)):
        digest.update(torch.tensor(section, dtype=torch.int64).numpy().tobytes())
        # Separates sections: [1, 2], [3] and [1], [2, 3] must differ.
        digest.update(b"|")
    return digest.hexdigest()
