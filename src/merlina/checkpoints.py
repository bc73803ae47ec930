"""Which checkpoints of a run are complete, and how one becomes so, is replaced and is removed.

A checkpoint is complete when its manifest verifies. The manifest names every file with its size and checksum; it is
written last, once all of them are on the disk, and removed first. A crash at any moment therefore leaves a checkpoint
either complete or without a valid manifest.

Earlier versions wrote no manifest but an empty file, `whole`, once all files were on the disk; and they removed a
checkpoint's files in any order. One that has this mark and every file that a resume needs counts as complete, and gets
its manifest from the first attempt that resumes the run (`adopt`).
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
from xxhash import xxh3_128

from merlina.faults import FaultPoint, reach

MANIFEST = "manifest.json"
_EARLIER_MARK = "whole"
_PARTIAL_MANIFEST = f".{MANIFEST}.partial"
_STATE = "trainer_state.json"
_NEEDED = (_STATE, "optimizer.pt", "scheduler.pt", "rng_state.pth")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
_INDEX_OF_WEIGHTS = "model.safetensors.index.json"
_PREFIX = "checkpoint-"
_OWN = re.compile(r"\.?checkpoint-.*|.*-reference\.(safetensors|partial)")
_BLOCK = 1 << 20


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    size: int
    xxh3_128: str


class _Manifest(BaseModel):
    """`best_step` is the checkpoint that this one needs beside it: the best evaluated model so far."""

    model_config = ConfigDict(frozen=True)

    step: int
    best_step: int | None
    files: dict[str, _File]


@dataclass(frozen=True)
class Rejected:
    """A checkpoint that cannot be used, and why.

    One that is `unfinished` was being written or removed when its process died, which loses nothing; one that is
    `damaged` had been complete; one that is `unreadable` may still be so.
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
    """The newest complete checkpoint, and the newer ones that are not complete, newest first."""

    newest: Path | None
    rejected: tuple[Rejected, ...]

    @property
    def step(self) -> int | None:
        """The optimizer step that a resume continues from; None where it can only start over."""
        return step_of(self.newest) if self.newest else None

    @property
    def lost(self) -> tuple[Rejected, ...]:
        """The rejected ones that had been complete."""
        return tuple(one for one in self.rejected if one.kind != "unfinished")


def survey(folder: Path, *, checksums: bool = False, most_bytes: int | None = None) -> Survey:
    """Look for the newest complete checkpoint below `folder`.

    Without `checksums` only names and sizes are compared, which takes no time; with them each file is read, in
    checkpoints of at most `most_bytes` if that is given.
    """
    rejected: list[Rejected] = []
    for path in _newest_first(folder):
        found = examine(path, checksums=checksums, most_bytes=most_bytes)
        if found is None:
            return Survey(path, tuple(rejected))
        rejected.append(found)
    return Survey(None, tuple(rejected))


def examine(checkpoint: Path, *, checksums: bool = False, most_bytes: int | None = None) -> Rejected | None:
    """What keeps a checkpoint from being complete, or None. See `survey` for the arguments."""
    try:
        manifest = _Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        return _examine_without_manifest(checkpoint)
    except ValidationError:
        return Rejected(checkpoint, "damaged", f"its {MANIFEST} is not valid")
    except OSError as error:
        return Rejected(checkpoint, "unreadable", f"its {MANIFEST} cannot be read: {error.strerror}")
    if manifest.step != step_of(checkpoint):
        return Rejected(checkpoint, "damaged", f"its {MANIFEST} is that of step {manifest.step}")
    if most_bytes is not None and sum(file.size for file in manifest.files.values()) > most_bytes:
        checksums = False
    for name, file in manifest.files.items():
        try:
            reason = _difference(checkpoint / name, file, checksums=checksums)
        except OSError as error:
            return Rejected(checkpoint, "unreadable", f"{name} cannot be read: {error.strerror}")
        if reason is not None:
            return Rejected(checkpoint, "damaged", f"{name} {reason}")
    return None


def adopt(folder: Path) -> list[int]:
    """Give the complete checkpoints of an earlier version their manifests. Returns their steps, newest first.

    May be repeated after a crash. The earlier mark is removed, so that no checkpoint has two.
    """
    adopted = []
    for path in _newest_first(folder):
        mark = path / _EARLIER_MARK
        if not mark.exists():
            continue
        if not (path / MANIFEST).exists():
            if _examine_without_manifest(path) is not None:
                continue
            (path / _PARTIAL_MANIFEST).unlink(missing_ok=True)
            seal(path, _best_step_by_state(path))
            adopted.append(step_of(path))
        mark.unlink()
        sync(path)
    return adopted


def seal(checkpoint: Path, best_step: int | None) -> None:
    """Wait until every file of the checkpoint is on the disk, then mark it as complete."""
    names = sorted(
        path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file() and path.name != _EARLIER_MARK
    )
    for path in checkpoint.rglob("*"):
        sync(path)
    sync(checkpoint)
    sync(checkpoint.parent)
    reach(FaultPoint.SAVE_SYNCED)
    files = {
        str(name): _File(size=(checkpoint / name).stat().st_size, xxh3_128=_checksum(checkpoint / name))
        for name in names
    }
    manifest = _Manifest(step=step_of(checkpoint), best_step=best_step, files=files)
    temporary = checkpoint / _PARTIAL_MANIFEST
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    sync(temporary)
    reach(FaultPoint.SAVE_MANIFEST_WRITTEN)
    temporary.rename(checkpoint / MANIFEST)
    sync(checkpoint)
    reach(FaultPoint.SAVE_MARKED)


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints and the best ones that those need beside them."""
    complete = [path for path in _newest_first(folder) if examine(path) is None]
    kept = complete[:keep]
    needed = {step_of(path) for path in kept} | {_best_step(path) for path in kept}
    for path in _newest_first(folder):
        if step_of(path) not in needed:
            remove(path)


def unmark(checkpoint: Path) -> None:
    """Make sure that a checkpoint no longer counts as complete, whatever happens next."""
    (checkpoint / _EARLIER_MARK).unlink(missing_ok=True)
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    sync(checkpoint)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint: its mark before its files, so that a crash in between leaves none that looks complete."""
    if not checkpoint.is_dir():
        return
    unmark(checkpoint)
    reach(FaultPoint.ROTATE_UNMARKED)
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        path.unlink()
        reach(FaultPoint.ROTATE_HALF_REMOVED)
    shutil.rmtree(checkpoint)
    reach(FaultPoint.ROTATE_REMOVED)


def remove_incomplete(folder: Path) -> None:
    """Remove what crashes have left of checkpoints that were being written or removed."""
    for path in _newest_first(folder):
        if not (path / MANIFEST).exists():
            remove(path)


def remove_all(folder: Path) -> None:
    """Remove every checkpoint of a run that starts over."""
    for path in _newest_first(folder):
        remove(path)


def remove_folder(folder: Path) -> None:
    """Remove what a run has kept to be resumed, and the folder unless files of others are in it. May be repeated."""
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
    """The optimizer step after which it was taken."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def path_of(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step}"


def is_final(checkpoint: Path) -> bool:
    """Whether all optimizer steps of the run had been taken when it was made."""
    state = _state(checkpoint)
    return int(state["global_step"]) >= int(state["max_steps"])


def evaluation_is_due(checkpoint: Path) -> bool:
    """Whether the step after which it was taken is one of those that are evaluated."""
    state = _state(checkpoint)
    return bool(state["eval_steps"]) and int(state["global_step"]) % int(state["eval_steps"]) == 0


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _examine_without_manifest(checkpoint: Path) -> Rejected | None:
    if not (checkpoint / _EARLIER_MARK).exists():
        return Rejected(checkpoint, "unfinished", "it was not finished")
    written = "it was written by an earlier version, without a manifest, and"
    missing = [name for name in _NEEDED if not (checkpoint / name).is_file()]
    if missing:
        return Rejected(checkpoint, "damaged", f"{written} {', '.join(missing)} is missing")
    try:
        if int(_state(checkpoint)["global_step"]) != step_of(checkpoint):
            return Rejected(checkpoint, "damaged", f"{written} its {_STATE} is that of another step")
        lost = _missing_weights(checkpoint)
    except (ValueError, KeyError, TypeError) as error:
        return Rejected(checkpoint, "damaged", f"{written} a file of it is not valid: {error}")
    except OSError as error:
        return Rejected(checkpoint, "unreadable", f"{error.filename} cannot be read: {error.strerror}")
    return Rejected(checkpoint, "damaged", f"{written} {lost} is missing") if lost is not None else None


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
    """An earlier version named the best checkpoint in the Trainer's state where it had to be kept."""
    best = _state(checkpoint).get("best_model_checkpoint")
    return step_of(Path(best)) if best else None


def _best_step(checkpoint: Path) -> int | None:
    return _Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes()).best_step


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def _difference(path: Path, expected: _File, *, checksums: bool) -> str | None:
    """Raises OSError where the file cannot be read."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != expected.size:
        return f"has {size:,} bytes instead of {expected.size:,}"
    if checksums and _checksum(path) != expected.xxh3_128:
        return "is not as it was written: its checksum differs"
    return None


def _checksum(path: Path) -> str:
    digest, block = xxh3_128(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(block):
            digest.update(block[:read])
    return digest.hexdigest()
