"""Jobs that the database does not know, listed again from their run folders: it was lost, restored or replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from merlina.errors import StoredConfigError
from merlina.jobs.follower import follow
from merlina.jobs.moves import Moves
from merlina.jobs.run_folders import RunMark, read_mark, remove_run_files
from merlina.runs import RunFolder, RunOrder, find_events, read_events
from merlina.schemas import events
from merlina.storage import jobs
from merlina.storage.database import Database

_log = logging.getLogger(__name__)
_ABOUT_MODELS = ("set_aside", "state", "placed", "ended")


def unknown_folders(database: Database, runs_dir: Path) -> list[RunFolder]:
    """Folders below `runs_dir` that belong to no job in the database, in order of their names."""
    with database.read() as connection:
        known = jobs.summaries(connection, with_deleting=True)
    return [RunFolder(path) for path in sorted(runs_dir.iterdir()) if path.name not in known and path.is_dir()]


def take_in_unknown(moves: Moves, folders: Sequence[RunFolder], tell: Callable[[str], None]) -> None:
    """Remove what is left of jobs that were deleted or never accepted, list other runs again, leave the rest alone.

    `tell` gets one line about what was found.
    """
    rebuilt, foreign = [], []
    for folder in folders:
        mark = read_mark(folder)
        if mark is None:
            foreign.append(folder.path.name)
        elif folder.deleted_file.exists() or (folder.pending_file.exists() and not folder.events_file.exists()):
            remove_run_files(folder)
        else:
            try:
                _rebuild(moves, folder, mark)
                rebuilt.append(folder)
            except Exception:  # one damaged folder must not hide the others
                _log.exception("the job of %s could not be listed again; its folder stays as it is", folder.path)
    if rebuilt:
        _settle_output_dirs(moves.database, rebuilt)
        tell(
            f"{len(rebuilt)} runs were not in the database and are listed again from their folders: "
            f"{_some([folder.path.name for folder in rebuilt])}"
        )
    if foreign:
        tell(f"{len(foreign)} folders among the runs are not Merlina's and are left alone: {_some(foreign)}")


def _rebuild(moves: Moves, folder: RunFolder, mark: RunMark) -> None:
    """Add the job as its log describes it. One that never started is paused, since it may have been cancelled."""
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
        values |= {"last_seq": begin[0].seq - 1} | {
            "stop_requested_at": _time_of(folder.stop_file),
            "pause_requested_at": _time_of(folder.pause_file),
        }
    with moves.database.write() as connection:
        record = jobs.add(connection, values)
    follow(moves, record, folder)


def _order(folder: RunFolder) -> RunOrder | None:
    try:
        return folder.read_order()
    except (OSError, StoredConfigError):
        return None


def _time_of(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _settle_output_dirs(database: Database, folders: Sequence[RunFolder]) -> None:
    """Find each job's model after all moves in all logs, which were read job by job rather than in order of time."""
    found = [
        (event.time, number, folder.path.name, event)
        for number, folder in enumerate(folders)
        for event in find_events(folder.events_file, _ABOUT_MODELS)
    ]
    model_of: dict[str, str] = {}
    uploading: set[str] = set()
    for _, _, job_id, event in sorted(found, key=lambda one: one[:2]):
        if isinstance(event, events.SetAside):
            model_of = {owner: _moved(path, event.folder, event.kept_as) for owner, path in model_of.items()}
            continue
        saved_in = getattr(event, "output_dir", None) or getattr(event, "folder", None)
        if isinstance(event, events.StateChanged):
            (uploading.add if saved_in else uploading.discard)(job_id)
        # The last event names the folder again, from which another run may have moved the model since.
        if saved_in and not (isinstance(event, events.Ended) and job_id in uploading):
            model_of = {owner: path for owner, path in model_of.items() if path != saved_in} | {job_id: saved_in}
    with database.write() as connection:
        for folder in folders:
            jobs.set_output_dir(connection, folder.path.name, model_of.get(folder.path.name))


def _moved(path: str, folder: str, kept_as: str) -> str:
    return kept_as + path[len(folder) :] if path == folder or path.startswith(f"{folder}/") else path


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
