"""The stages of a run in order; every error ends here and becomes the last event of the run."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping

from torch import nn

from merlina import checkpoints
from merlina.errors import MerlinaError, ModelError, first_line
from merlina.faults import FaultPoint, reach
from merlina.model_placement import last_placement, placement_awaiting_end
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder, remove_token_cache
from merlina.run_folder.order import RunOrder
from merlina.schemas.events import Ended
from merlina.training.reporter import StoppedEarly
from merlina.worker.resource_errors import disk_is_full, exhausted_memory
from merlina.worker.run.data_loading import TrainingData
from merlina.worker.run.finished_model.publishing import publish
from merlina.worker.run.finished_model.saving import save_model
from merlina.worker.run.reporting import EventReporter, redact_tokens
from merlina.worker.run.stages import LoadedModel, Stages
from merlina.worker.run.stop_requests import ReceivedRequests

_FAILED = 1


def run(folder: RunFolder, order: RunOrder, log: EventLog, requests: ReceivedRequests) -> int:
    """Carry out an order and return the exit code of the process. The last event states the outcome."""
    reporter = EventReporter(log, requests)
    folder.reserve()
    try:
        run_stages(Stages(folder, order, reporter))
    except Exception as error:
        folder.reserve_file.unlink(missing_ok=True)
        placed = str(reporter.model_folder) if reporter.model_folder else None
        step = checkpoints.survey(folder.checkpoints_dir).step
        reporter.end(
            Ended(state="failed", error=describe_error(error, folder), output_dir=placed, checkpoint_step=step)
        )
        sys.stderr.write(redact_tokens(traceback.format_exc()))
        return _FAILED
    folder.reserve_file.unlink(missing_ok=True)
    return 0


def run_stages(stages: Stages) -> None:
    """Run all stages and write the last event, which only the first rank does. Errors are raised."""
    try:
        _run_stages(stages)
    except StoppedEarly:
        reporter = stages.reporter
        reason = reporter.reason_to_pause()
        step = checkpoints.survey(stages.folder.checkpoints_dir).step
        if reason is not None:
            reporter.paused(reason, step)
        else:
            kept = f"the checkpoint at step {step} is kept" if step else "there is nothing to save"
            reporter.note("info", f"Stopped before training began; {kept}")
            reporter.end(Ended(state="stopped", checkpoint_step=step))


def _run_stages(stages: Stages) -> None:
    folder, reporter = stages.folder, stages.reporter
    if stages.ranks.broadcast_from_first(_complete_if_placed(stages)):
        return
    stages.choose_start()
    reporter.state("loading_model")
    loaded = stages.load_model()
    reporter.state("loading_dataset")
    data = stages.load_data(loaded)
    reporter.state("training")
    trained = stages.train(loaded, data)
    if not stages.ranks.is_first:
        return
    reach(FaultPoint.END_TRAINED)
    if stages.was_stopped and (reason := reporter.reason_to_pause()) is not None:
        reporter.paused(reason, checkpoints.survey(folder.checkpoints_dir).step)
        return
    _finish(stages, loaded, data, trained)


def _finish(stages: Stages, loaded: LoadedModel, data: TrainingData, trained: nn.Module) -> None:
    order, folder, reporter = stages.order, stages.folder, stages.reporter
    reporter.state("saving")
    reach(FaultPoint.END_SAVING)
    final_metrics = reporter.final_metrics()
    placed = last_placement(folder.events_file)
    if placed is None or placed.step != stages.last_step:
        save_model(
            trained,
            loaded.tokenizer,
            order,
            data,
            final_metrics,
            reporter,
            stages.last_step,
            was_stopped=stages.was_stopped,
        )
    if stages.was_stopped:
        step = checkpoints.survey(folder.checkpoints_dir).step
        reporter.end(
            Ended(
                state="stopped",
                output_dir=order.output_dir,
                final_metrics=dict(final_metrics),
                checkpoint_step=step,
            )
        )
        return
    if order.config.push_to_hub:
        reporter.state("uploading", output_dir=order.output_dir)
        publish(trained, loaded.tokenizer, order, data, final_metrics, reporter, folder.checkpoints_dir)
        reach(FaultPoint.END_UPLOADED)
    _complete(stages, final_metrics)


def _complete_if_placed(stages: Stages) -> bool:
    """Complete the run if an earlier attempt placed the model but died before its last event; return whether it did.

    A run that uploads its model loads the last checkpoint instead, since the upload needs the model in memory.
    """
    order, reporter = stages.order, stages.reporter
    if not stages.ranks.is_first or not order.resume or order.config.push_to_hub:
        return False
    placing = None if stages.folder.start_over_file.exists() else placement_awaiting_end(stages.folder.events_file)
    if placing is None:
        return False
    reporter.resumed(placing.step)
    reporter.note("info", f"All {placing.step} steps are complete and the model is in {placing.folder}")
    reporter.state("saving")
    _complete(stages, placing.final_metrics or {})
    return True


def _complete(stages: Stages, final_metrics: Mapping[str, float | None]) -> None:
    """Write the last event, then remove the checkpoints: until the event is on disk, a resume may need them."""
    order, folder = stages.order, stages.folder
    stages.reporter.end(Ended(state="completed", output_dir=order.output_dir, final_metrics=dict(final_metrics)))
    reach(FaultPoint.END_REPORTED)
    checkpoints.remove_folder(folder.checkpoints_dir)
    remove_token_cache(folder)


def describe_error(error: Exception, folder: RunFolder) -> str:
    """Return the error text of the run: what happened and what to do about it."""
    cause = _cause_of(error)
    memory = exhausted_memory(cause)
    if memory is not None:
        return (
            f"The run needs more {memory} than is available. In order of effect: use_4bit, gradient_checkpointing, "
            "a smaller max_length, an 8-bit optimizer_type, a smaller lora_r"
        )
    if disk_is_full(cause):
        written = "the model's files" if cause is not error else getattr(error, "filename", None) or folder.path
        return f"The disk is full: {written} could not be written. Free some space, then resume or retry"
    if isinstance(error, MerlinaError):
        return error.message
    if isinstance(error, PermissionError):
        return f"{error.filename} cannot be accessed: {error.strerror}"
    return f"Unexpected {type(error).__name__}: {first_line(error)}. The traceback is in {folder.log_file}"


def _cause_of(error: Exception) -> BaseException:
    """Return the cause of a ModelError: the model's files are not at fault if disk or memory was exhausted."""
    return error.__cause__ or error if isinstance(error, ModelError) else error
