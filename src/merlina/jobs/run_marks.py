"""Recognition and removal of run folders in DATA_DIR/runs. Only files that Merlina wrote are ever removed.

Other programs may keep folders there, and users may add files to a run folder. A folder is a run folder if it has a
mark, `job.json`, that names the folder's own job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from merlina.checkpoints import remove_folder
from merlina.errors import StoredConfigError
from merlina.private_files import write_private
from merlina.run_folder.folder import RunFolder

_log = logging.getLogger(__name__)


class RunMark(BaseModel):
    """The content of `job.json`, from which a job is restored if the database is lost. Times are epoch seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["merlina run"] = "merlina run"
    job_id: str
    config: dict[str, Any]
    priority: int = 3
    preemptible: bool = False
    memory_needed_mb: int | None = None
    dataset_file: str | None = None
    target_dir: str
    created_at: float


def write_mark(folder: RunFolder, values: Mapping[str, Any]) -> None:
    """Mark a new folder with the column values of its job, which is pending until it is in the database."""
    folder.pending_file.touch(mode=0o600)
    mark = RunMark.model_validate({name: values[name] for name in RunMark.model_fields if name in values})
    write_private(folder.mark_file, mark.model_dump_json(indent=2).encode())


def read_mark(folder: RunFolder) -> RunMark | None:
    """Return the folder's mark; None if it is not a run folder.

    A folder of an earlier version has no mark; one is derived from its order.json.
    """
    try:
        mark: RunMark | None = RunMark.model_validate_json(folder.mark_file.read_bytes())
    except FileNotFoundError:
        mark = _mark_of_order(folder)
    except (OSError, ValidationError):
        return None
    return mark if mark is not None and mark.job_id == folder.path.name else None


def remove_run_files(folder: RunFolder) -> None:
    """Remove all files of a run, the mark last, and then the folder if it is empty."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.path.iterdir(), key=lambda path: path == folder.mark_file):
            _remove_own(folder, path)
        with contextlib.suppress(OSError):
            folder.path.rmdir()
        if folder.path.exists():
            _log.warning("%s is kept: it contains files that are not part of the run", folder.path)


def remove_partial_model(target_dir: str, job_id: str) -> None:
    """Remove the temporary folders of a killed worker's model and upload, which have the job's id in their names."""
    target = Path(target_dir)
    for ending in ("partial", "upload"):
        shutil.rmtree(target.with_name(f".{target.name}.{job_id}.{ending}"), ignore_errors=True)


def _remove_own(folder: RunFolder, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path == folder.checkpoints_dir and not path.is_symlink():
            remove_folder(path)
        elif path in folder.own_paths or folder.is_unfinished(path):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, a folder or a link, but not the target of a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _mark_of_order(folder: RunFolder) -> RunMark | None:
    try:
        order = folder.read_order()
        created_at = os.stat(folder.order_file).st_mtime
    except (OSError, StoredConfigError):
        return None
    return RunMark(
        job_id=order.job_id,
        config=order.config.model_dump(mode="json"),
        dataset_file=order.dataset_file,
        target_dir=order.output_dir,
        created_at=created_at,
    )
