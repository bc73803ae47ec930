"""Placement: the atomic rename of a finished model into its output folder. (`jobs.scheduler` assigns GPUs.)

The worker writes the model into a temporary folder beside the output folder, then the event `placing`, which lists the
remaining renames. From then on the model is complete: the process that finds the worker dead completes the renames
with `place`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from merlina.checkpoints import sync
from merlina.faults import FaultPoint, reach
from merlina.run_folder.event_log import find_events
from merlina.schemas.events import Moved, Placed, Placing, Resumed, Started


class PlacementLog(Protocol):
    """Writes the events of a placement, each durably."""

    def moved(self, folder: Path, kept_as: Path) -> None: ...

    def placed(self, folder: Path) -> None: ...


def identity(folder: Path) -> str | None:
    """Return a string that identifies a folder after a rename until its content changes; None if there is no folder."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return f"{found.st_ino}:{found.st_mtime_ns}"


def place(placing: Placing, log: PlacementLog, *, is_move_logged: bool = False) -> bool:
    """Rename the older model and then the new one into its place, skipping renames that are already done.

    With `is_move_logged` the log already has the event `moved`. Return False if the new model is in neither
    place, or if another model has been put into the folder meanwhile.
    """
    folder, staged = Path(placing.folder), Path(placing.staged)
    if identity(folder) != placing.identity:
        if identity(staged) != placing.identity:
            return False
        if os.path.lexists(folder) and not _move_older(placing, log, is_logged=is_move_logged):
            return False
        os.rename(staged, folder)
        sync(folder.parent)
        reach(FaultPoint.END_PLACED)
    log.placed(folder)
    return True


def _move_older(placing: Placing, log: PlacementLog, *, is_logged: bool) -> bool:
    if placing.kept_as is None or os.path.lexists(placing.kept_as):
        return False
    folder, kept_as = Path(placing.folder), Path(placing.kept_as)
    # Reported before the rename: otherwise the new model would count as the older job's after a crash in between.
    if not is_logged:
        log.moved(folder, kept_as)
        reach(FaultPoint.END_OLDER_REPORTED)
    try:
        os.rename(folder, kept_as)
    except OSError:
        log.moved(kept_as, folder)
        raise
    reach(FaultPoint.END_OLDER_MOVED)
    return True


def last_placement(events_file: Path) -> Placing | None:
    """Return the placement of the model in the run's output folder; None if the run continued from an earlier step."""
    placing: Placing | None = None
    for event in find_events(events_file, Placing, Resumed):
        if isinstance(event, Placing):
            placing = event
        elif isinstance(event, Resumed) and placing is not None and event.step < placing.step:
            placing = None
    return placing if placing is not None and identity(Path(placing.folder)) == placing.identity else None


def placement_awaiting_end(events_file: Path) -> Placing | None:
    """Return the placement of a fully trained model if its run lacks only the last event; otherwise None."""
    placing = last_placement(events_file)
    return placing if placing is not None and placing.final_metrics is not None else None


def interrupted_placement(events_file: Path) -> tuple[Placing, bool] | None:
    """Return the placement that the last attempt left unfinished, and whether the older model's rename is logged."""
    placing, is_move_logged = None, False
    for event in find_events(events_file, Started, Placing, Moved, Placed):
        if isinstance(event, Started | Placed):
            placing, is_move_logged = None, False
        elif isinstance(event, Placing):
            placing = event
        elif isinstance(event, Moved) and placing is not None:
            is_move_logged = event.kept_as == placing.kept_as
    return (placing, is_move_logged) if placing else None
