"""A finished model becomes the content of its output folder, by renames that a crash cannot leave half done.

The worker writes the model beside the folder, then the event `placing`, which says everything that is left to do. From
then on the model is complete: whoever finds the worker dead carries the renames out to their end with `place`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from merlina.checkpoints import sync
from merlina.faults import FaultPoint, reach
from merlina.runs import find_events
from merlina.schemas.events import Moved, Placed, Placing, Resumed, Started


class PlacementLog(Protocol):
    """Writes the events of a placement, each durably."""

    def moved(self, folder: Path, kept_as: Path) -> None: ...

    def placed(self, folder: Path) -> None: ...


def identity(folder: Path) -> str | None:
    """What recognizes a folder after a rename, until something in it changes; None where nothing is there."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return f"{found.st_ino}:{found.st_mtime_ns}"


def place(placing: Placing, log: PlacementLog, *, older_is_logged: bool = False) -> bool:
    """Rename the older model out of the way and the new one into its place; steps already done are not repeated.

    `older_is_logged` says that `moved` is in the log already. Returns False if the new model is in neither place, or if
    another one has been put into the folder meanwhile.
    """
    folder, staged = Path(placing.folder), Path(placing.staged)
    if identity(folder) != placing.identity:
        if identity(staged) != placing.identity:
            return False
        if os.path.lexists(folder) and not _move_older(placing, log, is_logged=older_is_logged):
            return False
        os.rename(staged, folder)
        sync(folder.parent)
        reach(FaultPoint.END_PLACED)
    log.placed(folder)
    return True


def _move_older(placing: Placing, log: PlacementLog, *, is_logged: bool) -> bool:
    """Reported before it is done: until then the new model must not pass for the older job's."""
    if placing.kept_as is None or os.path.lexists(placing.kept_as):
        return False
    folder, kept_as = Path(placing.folder), Path(placing.kept_as)
    if not is_logged:
        log.moved(folder, kept_as)
        reach(FaultPoint.END_OLDER_TOLD)
    try:
        os.rename(folder, kept_as)
    except OSError:
        log.moved(kept_as, folder)
        raise
    reach(FaultPoint.END_OLDER_MOVED)
    return True


def last_placing(events_file: Path) -> Placing | None:
    """The placement of the model in the run's output folder; None if the run has continued from an earlier step."""
    placing: Placing | None = None
    for event in find_events(events_file, Placing, Resumed):
        if isinstance(event, Placing):
            placing = event
        elif isinstance(event, Resumed) and placing is not None and event.step < placing.step:
            placing = None
    return placing if placing is not None and identity(Path(placing.folder)) == placing.identity else None


def only_end_is_left(events_file: Path) -> Placing | None:
    """The placement of a model for which all steps were taken, so that nothing but the run's last event is missing."""
    placing = last_placing(events_file)
    return placing if placing is not None and placing.final_metrics is not None else None


def interrupted_placing(events_file: Path) -> tuple[Placing, bool] | None:
    """The placement that the last attempt left unfinished, and whether it had reported the older model's move."""
    placing, older_is_logged = None, False
    for event in find_events(events_file, Started, Placing, Moved, Placed):
        if isinstance(event, Started | Placed):
            placing, older_is_logged = None, False
        elif isinstance(event, Placing):
            placing = event
        elif isinstance(event, Moved) and placing is not None:
            older_is_logged = event.kept_as == placing.kept_as
    return (placing, older_is_logged) if placing else None
