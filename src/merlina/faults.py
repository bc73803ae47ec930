"""Fault points: named moments at which a test kills a process without warning, as a power failure would.

`MERLINA_CRASH_FILE` names a file that contains the name of a fault point. The first process that reaches this point
removes the file, so that later processes are not affected, and dies by SIGKILL. `name:3` means the third time that the
process reaches the point. A worker dies with all of its processes. Without the variable, `reach` costs one lookup in
the environment.

A new point needs its name here, a call of `reach` at its moment, and a row in ARCHITECTURE.md.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from enum import StrEnum
from pathlib import Path

_VARIABLE = "MERLINA_CRASH_FILE"


class FaultPoint(StrEnum):
    """A moment in a procedure, with which its name begins: start, save, rotate, pause, resume or end."""

    START_COMMITTED = "start.committed"
    START_ORDERED = "start.ordered"
    START_SPAWNED = "start.spawned"
    START_IDENTIFIED = "start.identified"
    START_REPORTED = "start.reported"
    START_MODEL_LOADED = "start.model_loaded"
    START_DATA_LOADED = "start.data_loaded"
    START_REFERENCE_WRITTEN = "start.reference_written"
    START_FIRST_STEP = "start.first_step"

    SAVE_BEGUN = "save.begun"
    SAVE_MODEL_WRITTEN = "save.model_written"
    SAVE_OPTIMIZER_WRITTEN = "save.optimizer_written"
    SAVE_WRITTEN = "save.written"
    SAVE_SYNCED = "save.synced"
    SAVE_MANIFEST_WRITTEN = "save.manifest_written"
    SAVE_COMPLETE = "save.complete"
    SAVE_REPORTED = "save.reported"
    ROTATE_MANIFEST_REMOVED = "rotate.manifest_removed"
    ROTATE_HALF_REMOVED = "rotate.half_removed"
    ROTATE_REMOVED = "rotate.removed"

    PAUSE_REQUESTED = "pause.requested"
    PAUSE_DELIVERED = "pause.delivered"
    PAUSE_SAVED = "pause.saved"
    PAUSE_REPORTED = "pause.reported"

    RESUME_PREPARED = "resume.prepared"
    RESUME_QUEUED = "resume.queued"
    RESUME_CHOSEN = "resume.chosen"
    RESUME_REPORTED = "resume.reported"
    RESUME_CLEANED = "resume.cleaned"
    RESUME_LOADED = "resume.loaded"

    END_TRAINED = "end.trained"
    END_SAVING = "end.saving"
    END_MODEL_WRITTEN = "end.model_written"
    END_PLACING = "end.placing"
    END_OLDER_REPORTED = "end.older_reported"
    END_OLDER_MOVED = "end.older_moved"
    END_PLACED = "end.placed"
    END_PLACED_REPORTED = "end.placed_reported"
    END_UPLOADED = "end.uploaded"
    END_REPORTED = "end.reported"
    END_HALF_CLEANED = "end.half_cleaned"


# The points that the server reaches. All others are reached by workers.
SERVER_POINTS = frozenset(
    {
        FaultPoint.START_COMMITTED,
        FaultPoint.START_ORDERED,
        FaultPoint.START_SPAWNED,
        FaultPoint.PAUSE_REQUESTED,
        FaultPoint.PAUSE_DELIVERED,
        FaultPoint.RESUME_PREPARED,
        FaultPoint.RESUME_QUEUED,
    }
)

_reached: Counter[FaultPoint] = Counter()


def reach(point: FaultPoint) -> None:
    """Kill this process if a test requests it; see the module's docstring."""
    path = os.environ.get(_VARIABLE)
    if path is None:
        return
    _reached[point] += 1
    try:
        name, _, times = Path(path).read_text().strip().partition(":")
    except FileNotFoundError:
        return
    if name == point and _reached[point] >= int(times or 1):
        Path(path).unlink()
        _die(point)


def _die(point: FaultPoint) -> None:
    if point in SERVER_POINTS:
        os.kill(os.getpid(), signal.SIGKILL)
    # A worker leads a session, to which its ranks belong.
    os.killpg(0, signal.SIGKILL)
