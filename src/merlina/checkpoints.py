"""Checkpoints on disk: completing, verifying, rotating and removing them.

A checkpoint is complete if its manifest verifies. The manifest lists every file with its size and checksum; it is
written last, when all files are on disk, and removed first. A crash at any moment therefore leaves a checkpoint
either complete or without a valid manifest.

Earlier versions wrote an empty file, `whole`, instead of a manifest when all files were on disk, and removed the
files of a checkpoint in any order. A checkpoint with that file and every file that a resume needs counts as complete,
and gets its manifest from the first attempt that resumes the run (`adopt`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from merlina.checksums import checksum
from merlina.faults import FaultPoint, reach

MANIFEST = "manifest.json"
_LEGACY_COMPLETE_FILE = "whole"
_PARTIAL_MANIFEST = f".{MANIFEST}.partial"
_STATE = "trainer_state.json"
_NEEDED = (_STATE, "optimizer.pt", "scheduler.pt", "rng_state.pth")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
_INDEX_OF_WEIGHTS = "model.safetensors.index.json"
_PREFIX = "checkpoint-"
_OWN = re.compile(r"\.?checkpoint-.*|.*-reference\.(safetensors|partial)")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    size: int
    xxh3_128: str


class _Manifest(BaseModel):
    """The files of a checkpoint. `best_step` is the step of the best model so far; its checkpoint is kept too."""

    model_config = ConfigDict(frozen=True)

    step: int
    best_step: int | None
    files: dict[str, _File]


@dataclass(frozen=True)
class UnusableCheckpoint:
    """A checkpoint that cannot be used, with the reason.

    `unfinished`: it was being written or removed when its process died. `damaged`: it was complete before.
    `unreadable`: it may still be complete.
    """

    path: Path
    kind: Literal["unfinished", "damaged", "unreadable"]
    reason: str

    @property
    def step(self) -> int:
        return step_of(self.path)

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


@dataclass(frozen=True)
class Survey:
    """The newest complete checkpoint, and all newer ones that cannot be used, newest first."""

    newest: Path | None
    unusable: tuple[UnusableCheckpoint, ...]

    @property
    def step(self) -> int | None:
        """The optimizer step from which a resume continues; None if it can only start over."""
        return step_of(self.newest) if self.newest else None

    @property
    def lost(self) -> tuple[UnusableCheckpoint, ...]:
        """The damaged or unreadable checkpoints, which were complete before or may still be."""
        return tuple(one for one in self.unusable if one.kind != "unfinished")


def survey(folder: Path, *, checksums: bool = False, max_bytes: int | None = None) -> Survey:
    """Find the newest complete checkpoint in `folder`.

    Without `checksums` only names and sizes are compared, which is fast. With it each file is read, but if `max_bytes`
    is given, only those of checkpoints up to that size.
    """
    unusable: list[UnusableCheckpoint] = []
    for path in _newest_first(folder):
        found = check_checkpoint(path, checksums=checksums, max_bytes=max_bytes)
        if found is None:
            return Survey(path, tuple(unusable))
        unusable.append(found)
    return Survey(None, tuple(unusable))


def check_checkpoint(
    checkpoint: Path, *, checksums: bool = False, max_bytes: int | None = None
) -> UnusableCheckpoint | None:
    """Return why a checkpoint cannot be used; None if it is complete. See `survey` for the arguments."""
    try:
        manifest = _Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        return _check_without_manifest(checkpoint)
    except ValidationError:
        return UnusableCheckpoint(checkpoint, "damaged", f"its {MANIFEST} is not valid")
    except OSError as error:
        return UnusableCheckpoint(checkpoint, "unreadable", f"its {MANIFEST} cannot be read: {error.strerror}")
    if manifest.step != step_of(checkpoint):
        return UnusableCheckpoint(checkpoint, "damaged", f"its {MANIFEST} is that of step {manifest.step}")
    if max_bytes is not None and sum(file.size for file in manifest.files.values()) > max_bytes:
        checksums = False
    for name, file in manifest.files.items():
        try:
            reason = _difference(checkpoint / name, file, checksums=checksums)
        except OSError as error:
            return UnusableCheckpoint(checkpoint, "unreadable", f"{name} cannot be read: {error.strerror}")
        if reason is not None:
            return UnusableCheckpoint(checkpoint, "damaged", f"{name} {reason}")
    return None


def adopt(folder: Path) -> list[int]:
    """Write manifests for the complete checkpoints of an earlier version; return their steps, newest first.

    The empty file of the earlier version is removed. The call may be repeated after a crash.
    """
    adopted = []
    for path in _newest_first(folder):
        marker = path / _LEGACY_COMPLETE_FILE
        if not marker.exists():
            continue
        if not (path / MANIFEST).exists():
            if _check_without_manifest(path) is not None:
                continue
            (path / _PARTIAL_MANIFEST).unlink(missing_ok=True)
            write_manifest(path, _best_step_by_state(path))
            adopted.append(step_of(path))
        marker.unlink()
        sync(path)
    return adopted


def write_manifest(checkpoint: Path, best_step: int | None) -> None:
    """Wait until every file of the checkpoint is on disk, then write its manifest."""
    names = sorted(
        path.relative_to(checkpoint)
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name != _LEGACY_COMPLETE_FILE
    )
    for path in checkpoint.rglob("*"):
        sync(path)
    sync(checkpoint)
    sync(checkpoint.parent)
    reach(FaultPoint.SAVE_SYNCED)
    files = {
        str(name): _File(size=(checkpoint / name).stat().st_size, xxh3_128=checksum(checkpoint / name))
        for name in names
    }
    manifest = _Manifest(step=step_of(checkpoint), best_step=best_step, files=files)
    temporary = checkpoint / _PARTIAL_MANIFEST
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    sync(temporary)
    reach(FaultPoint.SAVE_MANIFEST_WRITTEN)
    temporary.rename(checkpoint / MANIFEST)
    sync(checkpoint)
    reach(FaultPoint.SAVE_COMPLETE)


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints and those of the best models that they refer to."""
    complete = [path for path in _newest_first(folder) if check_checkpoint(path) is None]
    kept = complete[:keep]
    needed = {step_of(path) for path in kept} | {_best_step(path) for path in kept}
    for path in _newest_first(folder):
        if step_of(path) not in needed:
            remove(path)


def remove_manifest(checkpoint: Path) -> None:
    """Remove the manifest, so that the checkpoint no longer counts as complete."""
    (checkpoint / _LEGACY_COMPLETE_FILE).unlink(missing_ok=True)
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    sync(checkpoint)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its manifest first: after a crash in between it does not look complete."""
    if not checkpoint.is_dir():
        return
    remove_manifest(checkpoint)
    reach(FaultPoint.ROTATE_MANIFEST_REMOVED)
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        path.unlink()
        reach(FaultPoint.ROTATE_HALF_REMOVED)
    shutil.rmtree(checkpoint)
    reach(FaultPoint.ROTATE_REMOVED)


def remove_incomplete(folder: Path) -> None:
    """Remove checkpoints that were being written or removed when a process crashed."""
    for path in _newest_first(folder):
        if not (path / MANIFEST).exists():
            remove(path)


def remove_all(folder: Path) -> None:
    """Remove every checkpoint of a run that starts over."""
    for path in _newest_first(folder):
        remove(path)


def remove_folder(folder: Path) -> None:
    """Remove all files that a run kept for a resume, and the folder if it is empty. The call may be repeated."""
    with contextlib.suppress(FileNotFoundError):
        for path in [path for path in folder.iterdir() if _OWN.fullmatch(path.name)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            reach(FaultPoint.END_HALF_CLEANED)
    with contextlib.suppress(OSError):
        folder.rmdir()


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which the checkpoint was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def path_of(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step}"


def is_final(checkpoint: Path) -> bool:
    """Return whether the checkpoint was written after the last optimizer step of the run."""
    state = _state(checkpoint)
    return int(state["global_step"]) >= int(state["max_steps"])


def evaluation_is_due(checkpoint: Path) -> bool:
    """Return whether the checkpoint's step is one that is followed by an evaluation."""
    state = _state(checkpoint)
    return bool(state["eval_steps"]) and int(state["global_step"]) % int(state["eval_steps"]) == 0


def sync(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_without_manifest(checkpoint: Path) -> UnusableCheckpoint | None:
    if not (checkpoint / _LEGACY_COMPLETE_FILE).exists():
        return UnusableCheckpoint(checkpoint, "unfinished", "it was not finished")
    written = "it was written by an earlier version, without a manifest, and"
    missing = [name for name in _NEEDED if not (checkpoint / name).is_file()]
    if missing:
        return UnusableCheckpoint(checkpoint, "damaged", f"{written} {', '.join(missing)} is missing")
    try:
        if int(_state(checkpoint)["global_step"]) != step_of(checkpoint):
            return UnusableCheckpoint(checkpoint, "damaged", f"{written} its {_STATE} is that of another step")
        lost = _missing_weights(checkpoint)
    except (ValueError, KeyError, TypeError) as error:
        return UnusableCheckpoint(checkpoint, "damaged", f"{written} a file of it is not valid: {error}")
    except OSError as error:
        return UnusableCheckpoint(checkpoint, "unreadable", f"{error.filename} cannot be read: {error.strerror}")
    return UnusableCheckpoint(checkpoint, "damaged", f"{written} {lost} is missing") if lost is not None else None


def _missing_weights(checkpoint: Path) -> str | None:
    if any((checkpoint / name).is_file() for name in _WEIGHTS):
        return None
    index = checkpoint / _INDEX_OF_WEIGHTS
    if not index.is_file():
        return " or ".join(_WEIGHTS)
    shards = set(json.loads(index.read_bytes())["weight_map"].values())
    return next((name for name in sorted(shards) if not (checkpoint / name).is_file()), None)


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_bytes())
    return state


def _best_step_by_state(checkpoint: Path) -> int | None:
    """Return the best checkpoint's step, which earlier versions stored in the Trainer's state."""
    best = _state(checkpoint).get("best_model_checkpoint")
    return step_of(Path(best)) if best else None


def _best_step(checkpoint: Path) -> int | None:
    return _Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes()).best_step


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def _difference(path: Path, expected: _File, *, checksums: bool) -> str | None:
    """Return how a file differs from its manifest entry, or None. Raises OSError if it cannot be read."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != expected.size:
        return f"has {size:,} bytes instead of {expected.size:,}"
    if checksums and checksum(path) != expected.xxh3_128:
        return "has changed: its checksum differs"
    return None
