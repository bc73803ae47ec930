"""The plan of a resume, made from the run folder at the time of the request.

The database knows the last reported checkpoint; only the folder shows which one can be used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from merlina import checkpoints
from merlina.checkpoints import Survey
from merlina.data.fingerprint import stamp
from merlina.errors import BusyError, DataError, HelperError, InvalidRequestError, NotFoundError, StartOverError
from merlina.executors.helper_process import HelperPool
from merlina.model_placement import placement_awaiting_end
from merlina.run_folder.folder import RunFolder
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.events import Placing
from merlina.schemas.inspection import Fingerprint
from merlina.schemas.operations import CompareRows
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.schemas.training.config import TrainingConfig
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
# The client waits meanwhile. The worker compares the rows again, without a limit.
_COMPARE_SECONDS = 30.0
# The client waits while checksums are computed, which takes seconds for checkpoints of up to this size in bytes.
_MAX_CHECKED_BYTES = 4 << 30


@dataclass(frozen=True)
class Resumption:
    """The optimizer step after which the next attempt continues (0: the beginning), with a message for the client."""

    step: int
    message: str
    warnings: tuple[str, ...] = ()
    starts_over: bool = False

    def announce_to(self, folder: RunFolder) -> None:
        """Write to the run folder what the next worker needs to know, within the transaction of the resume."""
        request_start_over(folder, wanted=self.starts_over)


def request_start_over(folder: RunFolder, *, wanted: bool) -> None:
    """Ask the next worker to ignore and remove all checkpoints, or withdraw that request."""
    if wanted:
        folder.start_over_file.touch(mode=0o600)
    else:
        folder.start_over_file.unlink(missing_ok=True)


CompareData = Callable[[TrainingConfig, Path | None, Fingerprint], str | None]
"""Returns how the data set differs from the one with the fingerprint, None if it does not; takes its first file."""


def plan_resume(record: JobRecord, folder: RunFolder, compare: CompareData, *, force: bool) -> Resumption:
    """Return where the next attempt continues. Only the worker verifies the content of very large checkpoints.

    Raises InvalidRequestError for a job that was cancelled before it ran, and StartOverError if it can only start over,
    with `force`.
    """
    if record.state == "cancelled" and not has_run_or_checkpoint(record, folder):
        raise _cancelled_in_queue(record)
    if _starts_over(record, folder, force=force):
        return Resumption(0, "Starting over at step 1, as requested.", starts_over=True)
    if (placing := complete_model(record, folder)) is not None:
        return Resumption(placing.step, f"All {placing.step} steps are done; only the run's last event is missing.")
    found = checkpoints.survey(folder.checkpoints_dir, checksums=True, max_bytes=_MAX_CHECKED_BYTES)
    if found.step is None:
        return _without_checkpoint(record, found)
    _refuse_other_data(record, folder, found.step, compare)
    warnings = tuple(f"{one}; the run continues from step {found.step} instead" for one in found.lost)
    return Resumption(found.step, f"Continuing from the checkpoint at step {found.step}.", warnings)


def needs_data(record: JobRecord, folder: RunFolder, *, force: bool) -> bool:
    """Return whether the next attempt reads rows, rather than only writing the run's last event."""
    return _starts_over(record, folder, force=force) or complete_model(record, folder) is None


def _starts_over(record: JobRecord, folder: RunFolder, *, force: bool) -> bool:
    # A file from a server that was killed before its commit does not count: the row still names a checkpoint.
    return force or (folder.start_over_file.exists() and record.last_checkpoint is None)


def complete_model(record: JobRecord, folder: RunFolder) -> Placing | None:
    """Return the placement of the finished model if only the run's last event is missing, None otherwise."""
    placing = placement_awaiting_end(folder.events_file)
    # An upload needs the model in memory: such a run loads its newest checkpoint.
    needs_model = placing is not None and read_stored_config(record.config, record.job_id).push_to_hub
    return None if needs_model else placing


def has_run_or_checkpoint(record: JobRecord, folder: RunFolder) -> bool:
    """Return whether the job ran or has a checkpoint. A job that was cancelled without either has lost its tokens."""
    return record.attempt_seen > 0 or checkpoints.survey(folder.checkpoints_dir).newest is not None


def _cancelled_in_queue(record: JobRecord) -> InvalidRequestError:
    return InvalidRequestError(
        f"Job {record.job_id} was cancelled in the queue and has no checkpoint; "
        f"POST /jobs/{record.job_id}/retry queues it as a new job"
    )


def compare_with(
    helper: HelperPool, max_row_mb: int, find_files: Callable[[DatasetConfig], dict[str, str]]
) -> CompareData:
    """Return a function that compares rows in a helper process. An unreadable file counts as different.

    `find_files` returns the files of additional sources by their field. If the helper fails or takes too long, the
    comparison is left to the worker.
    """

    def compare(config: TrainingConfig, file: Path | None, then: Fingerprint) -> str | None:
        try:
            additional = {location: Path(path) for location, path in find_files(config.dataset).items()}
            if file is None or len(additional) < config.dataset.num_sources - 1 or _are_same(then, file, additional):
                return None
            operation = CompareRows(
                config=config.dataset,
                file=file,
                source_files=additional,
                answers_needed=config.answers_needed,
                earlier=then,
                max_row_mb=max_row_mb,
            )
            return helper.call(operation, timeout=_COMPARE_SECONDS)
        except (DataError, NotFoundError) as error:
            return error.message
        except (BusyError, HelperError) as error:
            _log.warning("the rows of %s will be compared by the worker only: %s", file, error.message)
            return None

    return compare


def _are_same(then: Fingerprint, file: Path, additional: dict[str, Path]) -> bool:
    """Return whether no file was replaced since the fingerprint was taken. Raises NotFoundError if one is missing."""
    try:
        return then.file == stamp(file) and then.files == {name: stamp(path) for name, path in additional.items()}
    except FileNotFoundError as error:
        raise NotFoundError(f"the file {error.filename} is missing") from error


def available_checkpoints(folder: RunFolder) -> Survey:
    """Return the checkpoints that the next attempt can choose from."""
    return Survey(None, ()) if folder.start_over_file.exists() else checkpoints.survey(folder.checkpoints_dir)


def describe_next_steps(record: JobRecord, folder: RunFolder) -> str:
    """Return how a run that ended early can continue, as the end of its error message."""
    resume, retry = f"POST /jobs/{record.job_id}/resume", f"POST /jobs/{record.job_id}/retry"
    placing = None if folder.start_over_file.exists() else placement_awaiting_end(folder.events_file)
    if placing is not None:
        return f"its model is complete in {placing.folder}; {resume} completes the run"
    found = available_checkpoints(folder)
    if found.step is not None:
        return f"{resume} continues from its checkpoint at step {found.step}, {retry} queues it as a new job"
    if found.lost:
        return f"no complete checkpoint is left ({found.lost[0]}); {resume}?force=true starts over at step 1"
    return f"it had no checkpoint yet; {resume} starts again at step 1"


def _refuse_other_data(record: JobRecord, folder: RunFolder, step: int, compare: CompareData) -> None:
    """Raise StartOverError if the checkpoint was trained on other rows or with another split.

    Files are read only if one of them was replaced. The worker compares data sets from the Hub.
    """
    if not folder.fingerprint_file.is_file():
        return
    file = Path(record.dataset_file) if record.dataset_file else None
    then = Fingerprint.model_validate_json(folder.fingerprint_file.read_bytes())
    config = read_stored_config(record.config, record.job_id)
    difference = compare(config, file, then)
    if difference is not None:
        where = f"{file} " if file and config.dataset.num_sources == 1 else ""
        raise StartOverError(
            f"The data set {where}is not the one that job {record.job_id} was trained on until step {step}: "
            f"{difference}. Restore it, or send force=true to start over at step 1"
        )


def _without_checkpoint(record: JobRecord, found: Survey) -> Resumption:
    if found.lost or record.last_checkpoint:
        reasons = "; ".join(map(str, found.unusable)) or f"that of step {record.last_checkpoint} is gone"
        raise StartOverError(
            f"Job {record.job_id} has no complete checkpoint left: {reasons}. Send force=true to start over at step 1"
        )
    if record.state == "cancelled":
        raise _cancelled_in_queue(record)
    return Resumption(0, "The job had no checkpoint yet and starts at step 1.")
