"""Which checkpoints of a run can be gone on from: only those that are whole, on the disk, and marked so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

_MARK = "whole"
_PREFIX = "checkpoint-"


def mark_whole(checkpoint: Path) -> None:
    """Waits until all of the checkpoint is on the disk, then marks it."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            _sync(path)
    (checkpoint / _MARK).touch()
    _sync(checkpoint / _MARK)
    _sync(checkpoint)


def latest(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None."""
    whole = [path for path in _checkpoints(folder) if (path / _MARK).exists()]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was taken."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def is_final(checkpoint: Path) -> bool:
    """Whether all optimizer steps of the run were taken when it was made."""
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    return int(state["global_step"]) >= int(state["max_steps"])


def path_of(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step}"


def remove_torn(folder: Path) -> None:
    """Removes what a kill left half-written."""
    for path in _checkpoints(folder):
        if not (path / _MARK).exists():
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
