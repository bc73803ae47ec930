"""Recovery of a database that was lost, restored or replaced: its jobs are added and updated from the run folders."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from merlina.errors import StoredConfigError
from merlina.jobs.ingest import ingest_all
from merlina.jobs.moves import Moves
from merlina.jobs.run_marks import RunMark, read_mark, remove_run_files
from merlina.private_files import write_private
from merlina.run_folder.event_log import find_events, read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas import events
from merlina.storage import jobs
from merlina.storage.database import Database

_log = logging.getLogger(__name__)
# A file in the folder of all runs that lists the jobs being recovered, one id per line.
_RECOVERING = ".recovering"
# The name of the same file in earlier versions.
_EARLIER_RECOVERING = ".rebuilding"
_ABOUT_MODELS = (events.Moved, events.StateChanged, events.Placed, events.Ended)


def recover_jobs(moves: Moves, names: Collection[str], runs_dir: Path, report: Callable[[str], None]) -> None:
    """Bring the database up to date with the run folders, after it was lost, replaced or restored from a backup.

    `names` are the entries of `runs_dir` before this server accepted its first request. Remove the files of jobs that
    were deleted or never accepted, add jobs of other run folders, ingest the logs of jobs that continued after the
    backup, and leave other folders alone. `report` is called with one line for each kind of outcome.
    """
    restored, foreign = [], []
    unknown = _unknown(moves.database, names, runs_dir)
    unread = _unread(moves.database, names, runs_dir)
    marked = [(folder, read_mark(folder)) for folder in unknown]
    _note_recovering(runs_dir, [folder.path.name for folder, mark in marked if mark is not None] + unread)
    for folder, mark in marked:
        if mark is None:
            foreign.append(folder.path.name)
        elif folder.deleted_file.exists() or (folder.pending_file.exists() and not folder.events_file.exists()):
            remove_run_files(folder)
        else:
            try:
                _restore(moves, folder, mark)
                restored.append(folder)
            except Exception:  # one damaged folder must not affect the others
                _log.exception("the job of %s could not be restored; its folder is unchanged", folder.path)
    continued = [folder for folder in (RunFolder(runs_dir / job_id) for job_id in unread) if _update(moves, folder)]
    _restore_output_dirs(moves.database, sorted([*restored, *continued], key=lambda folder: folder.path))
    _note_recovering(runs_dir, [])
    if restored:
        report(
            f"{len(restored)} jobs were not in the database and were restored from their run folders: "
            f"{_first_five([folder.path.name for folder in restored])}"
        )
    if continued:
        report(
            f"{len(continued)} jobs had continued since the database was written and were updated from "
            f"their event logs: {_first_five([folder.path.name for folder in continued])}"
        )
    if foreign:
        report(
            f"{len(foreign)} folders in {runs_dir} are not run folders and were left unchanged: {_first_five(foreign)}"
        )


def _unknown(database: Database, names: Collection[str], runs_dir: Path) -> list[RunFolder]:
    """Return the folders that belong to no job in the database, in order of their names."""
    with database.read() as connection:
        known = jobs.all_ids(connection)
    return [RunFolder(runs_dir / name) for name in sorted(set(names) - known) if (runs_dir / name).is_dir()]


def _unread(database: Database, names: Collection[str], runs_dir: Path) -> list[str]:
    """Return jobs that are not running and have unread events, and those that were being recovered at a crash."""
    with database.read() as connection:
        read_up_to = jobs.log_offsets_of_idle_jobs(connection)
        known = jobs.all_ids(connection)
    for name in (_RECOVERING, _EARLIER_RECOVERING):
        with contextlib.suppress(FileNotFoundError):
            recovering = (runs_dir / name).read_text().splitlines()
            read_up_to |= dict.fromkeys((job_id for job_id in recovering if job_id in known), -1)
    listed = (job_id for job_id in names if job_id in read_up_to)
    log = RunFolder(runs_dir).events_file.name
    # There may be 100,000 folders; a Path for each would take three times as long as the call of stat.
    return sorted(job_id for job_id in listed if _size(f"{runs_dir}/{job_id}/{log}") > read_up_to[job_id])


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def _note_recovering(runs_dir: Path, job_ids: Sequence[str]) -> None:
    """Store which jobs' logs are being read, so that the next server reads them again if this one is killed."""
    try:
        if job_ids:
            write_private(runs_dir / _RECOVERING, "\n".join(job_ids).encode())
        else:
            for name in (_RECOVERING, _EARLIER_RECOVERING):
                (runs_dir / name).unlink(missing_ok=True)
    except OSError as error:  # the logs can be read nevertheless
        _log.warning("%s could not be updated: %s", runs_dir / _RECOVERING, error)


def _update(moves: Moves, folder: RunFolder) -> bool:
    """Ingest the rest of a job's log, and restore the requests to a worker that still runs; return False on failure."""
    try:
        with moves.database.read() as connection:
            record = jobs.get(connection, folder.path.name)
        if record is None or record.deleting:
            return False
        record = ingest_all(moves, record, folder)
        changes: dict[str, object] = {"attempt": max(record.attempt, record.attempt_seen)}
        if record.is_running:
            order = _order(folder)
            changes |= {"gpus": order.gpus if order else None, **_requests_of(folder)}
        moves.change(record, changes)
    except Exception:  # one damaged log must not affect the others
        _log.exception("the rest of the event log of %s could not be read", folder.path.name)
        return False
    return True


def _restore(moves: Moves, folder: RunFolder, mark: RunMark) -> None:
    """Add the job as its log describes it. A job that never started is paused, because it may have been cancelled."""
    order = _order(folder)
    begin, _ = read_events(folder.events_file, 0, 1)
    has_begun = bool(begin)
    values = mark.model_dump(exclude={"kind"}) | {
        "state": "initializing" if has_begun else "paused",
        "base_model": str(mark.config.get("base_model", "")),
        "output_name": str(mark.config.get("output_name", "")),
        "attempt": order.attempt if order else 1,
        "gpus": order.gpus if order and has_begun else None,
        "updated_at": mark.created_at,
    }
    if has_begun:
        values |= {"last_seq": begin[0].seq - 1, **_requests_of(folder)}
    ingest_all(moves, moves.restore(values), folder)


def _order(folder: RunFolder) -> RunOrder | None:
    try:
        return folder.read_order()
    except (OSError, StoredConfigError):
        return None


def _requests_of(folder: RunFolder) -> dict[str, float | None]:
    return {
        "stop_requested_at": _time_of(folder.stop_file),
        "pause_requested_at": _time_of(folder.pause_file),
    }


def _time_of(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _restore_output_dirs(database: Database, folders: Sequence[RunFolder]) -> None:
    """Find each job's model by the events of all logs in order of time, since they were ingested job by job."""
    found = [
        (event.time, number, folder.path.name, event)
        for number, folder in enumerate(folders)
        for event in find_events(folder.events_file, *_ABOUT_MODELS)
    ]
    model_of: dict[str, str] = {}
    uploading: set[str] = set()
    for _, _, job_id, event in sorted(found, key=lambda one: one[:2]):
        if isinstance(event, events.Moved):
            model_of = {owner: _moved(path, event.folder, event.kept_as) for owner, path in model_of.items()}
            continue
        saved_in = getattr(event, "output_dir", None) or getattr(event, "folder", None)
        if isinstance(event, events.StateChanged):
            (uploading.add if saved_in else uploading.discard)(job_id)
        # The event `ended` repeats the folder, but another run may have moved the model since.
        if saved_in and not (isinstance(event, events.Ended) and job_id in uploading):
            model_of = {owner: path for owner, path in model_of.items() if path != saved_in} | {job_id: saved_in}
    with database.write() as connection:
        for folder in folders:
            jobs.set_output_dir(connection, folder.path.name, model_of.get(folder.path.name))


def _moved(path: str, folder: str, kept_as: str) -> str:
    return kept_as + path[len(folder) :] if path == folder or path.startswith(f"{folder}/") else path


def _first_five(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
