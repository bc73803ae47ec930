"""The choice of the checkpoint after which an attempt continues."""

from __future__ import annotations

from pathlib import Path

from merlina import checkpoints
from merlina.checkpoints import Survey
from merlina.errors import TrainingError
from merlina.faults import FaultPoint, reach
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.worker.run.reporting import EventReporter


def choose_checkpoint(folder: RunFolder, order: RunOrder, reporter: EventReporter) -> Path | None:
    """Choose and report the newest checkpoint that matches its manifest; None if the attempt starts at step 1.

    Raises TrainingError if checkpoints had been completed but none can be used: the user decides about starting over.
    """
    if folder.start_over_file.exists():
        _start_over(folder, reporter)
        return None
    if not order.resume:
        return None
    for step in checkpoints.adopt(folder.checkpoints_dir):
        reporter.note(
            "info", f"The checkpoint at step {step} was written by an earlier version of Merlina; a manifest was added"
        )
    found = checkpoints.survey(folder.checkpoints_dir, checksums=True)
    reach(FaultPoint.RESUME_CHOSEN)
    for checkpoint in found.unusable:
        if checkpoint.kind == "damaged":
            checkpoints.remove_manifest(checkpoint.path)
    if found.newest is None and (found.lost or order.resume_step):
        raise TrainingError(_nothing_left(found, order))
    _report(found, order, reporter)
    reach(FaultPoint.RESUME_REPORTED)
    checkpoints.remove_incomplete(folder.checkpoints_dir)
    reach(FaultPoint.RESUME_CLEANED)
    return found.newest


def _start_over(folder: RunFolder, reporter: EventReporter) -> None:
    reporter.resumed(0)
    reporter.note("info", "Starting over at step 1, as requested; earlier checkpoints are removed")
    reach(FaultPoint.RESUME_REPORTED)
    checkpoints.remove_all(folder.checkpoints_dir)
    reach(FaultPoint.RESUME_CLEANED)
    folder.start_over_file.unlink()


def _report(found: Survey, order: RunOrder, reporter: EventReporter) -> None:
    step, announced = found.step or 0, order.resume_step
    reason = "; ".join(map(str, found.unusable)) or None
    if step == announced:
        reporter.resumed(step)
    else:
        reporter.resumed(step, announced, reason)
    start = (
        f"Continuing from the checkpoint at step {step}" if step else "There is no checkpoint yet; starting at step 1"
    )
    if step == announced and not found.lost:
        unfinished = f" ({reason}; it is removed)" if reason else ""
        reporter.note("info", f"{start}{unfinished}")
    else:
        reporter.note(
            "warning", f"{start} instead of step {announced}, which was announced: {reason or 'it was found since'}"
        )


def _nothing_left(found: Survey, order: RunOrder) -> str:
    reasons = "; ".join(map(str, found.unusable)) or "the folder holds none"
    after = f", though step {order.resume_step} was announced" if order.resume_step else ""
    return (
        f"No complete checkpoint is left to continue from{after}: {reasons}. "
        f"POST /jobs/{order.job_id}/resume?force=true starts over at step 1"
    )
