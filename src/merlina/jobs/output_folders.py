"""Ownership of output folders: one job at a time, and no model's folder inside another one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection

from merlina.errors import ConflictError
from merlina.model_placement import interrupted_placement
from merlina.run_folder.folder import RunFolder
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord

_MODEL_FILES = ("merlina.json", "adapter_config.json", "config.json")


def owner_among(others: Iterable[JobRecord], record: JobRecord) -> JobRecord | None:
    """Return the first of `others` that saves into the same folder as `record`, or into one inside or around it."""
    wanted = _real(record.target_dir)
    return next((other for other in others if _overlap(_real(other.target_dir), wanted)), None)


def refuse_nested_jobs(connection: Connection, target_dir: str, job_id: str | None = None) -> None:
    """Raise ConflictError if other jobs have a model inside or around `target_dir`, or may still save one there.

    `job_id` is the job that the folder is for, if it exists already.
    """
    around = jobs.jobs_with_nested_models(connection, target_dir, excluding=job_id)
    if around:
        other = around[0]
        raise ConflictError(
            f"output_name: {target_dir} and {other.output_dir or other.target_dir} of {other.job_id} "
            f"({other.state}) would be one inside the other; choose another output_name"
        )


def refuse_nested_on_disk(models_dir: Path, target_dir: Path) -> None:
    """Raise ConflictError if `target_dir` would be inside or around a model on disk, of any job or none."""
    parent = target_dir.parent
    if parent != models_dir:
        if parent.exists() and not parent.is_dir():
            raise ConflictError(f"output_name: {parent} is a file; choose another output_name")
        if _is_model(parent):
            raise ConflictError(f"output_name: {parent} is the folder of a model; choose another output_name")
    elif target_dir.is_dir() and not _is_model(target_dir) and (inside := _models_in(target_dir)):
        raise ConflictError(f"output_name: {target_dir} contains the model {inside[0]}; choose another output_name")


def correct_moved_model(connection: Connection, folder: RunFolder) -> None:
    """Correct the folder of an older model if a dead worker had logged its rename but not completed it."""
    interrupted = interrupted_placement(folder.events_file)
    if interrupted is None:
        return
    placing, is_logged = interrupted
    if is_logged and placing.kept_as and not os.path.lexists(placing.kept_as) and os.path.lexists(placing.folder):
        jobs.move_model(connection, placing.kept_as, placing.folder)


def _real(folder: str) -> Path:
    """Return the folder with symbolic links in its parents resolved.

    The folder itself is not resolved: if it is a link, the link is what a later run renames.
    """
    parent, name = os.path.split(folder)
    return Path(os.path.realpath(parent), name)


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _is_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in _MODEL_FILES)


def _models_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and _is_model(path))
    except OSError:
        return []
