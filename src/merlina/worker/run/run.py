"""The stages of a run in order, and the one place where whatever goes wrong becomes the run's last event."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping

from torch import nn

from merlina import checkpoints
from merlina.errors import MerlinaError, ModelError, first_line
from merlina.faults import FaultPoint, reach
from merlina.placement import last_placement, placement_awaiting_end
from merlina.runs import EventLog, RunFolder, RunOrder
from merlina.schemas.events import Ended
from merlina.training.reporter import StoppedEarly
from merlina.worker.resource_errors import disk_is_full, exhausted_memory
from merlina.worker.run.publishing import publish
from merlina.worker.run.reporting import EventReporter, without_tokens
from merlina.worker.run.saving import save_model
from merlina.worker.run.stages import LoadedModel, Stages, TrainingData
from merlina.worker.run.stop_requests import StopRequest

_FAILED = 1


def run(folder: RunFolder, order: RunOrder, log: EventLog, stop: StopRequest) -> int:
    """Runs an order to its end and returns the process's exit code. The log's last line says how it went."""
    reporter = EventReporter(log, stop)
    folder.reserve()
    try:
        run_stages(Stages(folder, order, reporter))
    except Exception as error:
        folder.reserve_file.unlink(missing_ok=True)
        placed = str(reporter.model_folder) if reporter.model_folder else None
        step = checkpoints.survey(folder.checkpoints_dir).step
        reporter.end(Ended(state="failed", error=in_words(error, folder), output_dir=placed, checkpoint_step=step))
        sys.stderr.write(without_tokens(traceback.format_exc()))
        return _FAILED
    folder.reserve_file.unlink(missing_ok=True)
    return 0


def run_stages(stages: Stages) -> None:
    """To the run's last event, unless something goes wrong; of several ranks, all but the first end without one."""
    try:
        _run_stages(stages)
    except StoppedEarly:
        reporter = stages.reporter
        reason = reporter.reason_to_pause()
        step = checkpoints.survey(stages.folder.checkpoints_dir).step
        if reason is not None:
            reporter.paused(reason, step)
        else:
            kept = f"; the checkpoint at step {step} is kept" if step else "; there is nothing to save"
            reporter.note("info", f"Stopped before training began{kept}")
            reporter.end(Ended(state="stopped", checkpoint_step=step))


def _run_stages(stages: Stages) -> None:
    folder, reporter = stages.folder, stages.reporter
    if stages.ranks.from_first(_complete_if_placed(stages)):
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
    """Whether an earlier attempt died over its last event, with the model in its place; this one then writes it.

    An upload needs the model in memory: such a run loads its last checkpoint.
    """
    order, reporter = stages.order, stages.reporter
    if not stages.ranks.is_first or not order.resume or order.config.push_to_hub:
        return False
    placing = None if stages.folder.start_over_file.exists() else placement_awaiting_end(stages.folder.events_file)
    if placing is None:
        return False
    reporter.resumed(placing.step)
    reporter.note("info", f"All {placing.step} steps were taken and the model is complete in {placing.folder}")
    reporter.state("saving")
    _complete(stages, placing.final_metrics or {})
    return True


def _complete(stages: Stages, final_metrics: Mapping[str, float | None]) -> None:
    """The last event first: until it is on the disk, a resume may need the checkpoints."""
    order, folder = stages.order, stages.folder
    stages.reporter.end(Ended(state="completed", output_dir=order.output_dir, final_metrics=dict(final_metrics)))
    reach(FaultPoint.END_REPORTED)
    checkpoints.remove_folder(folder.checkpoints_dir)


def in_words(error: Exception, folder: RunFolder) -> str:
    """What happened and what to do about it."""
    cause = _behind_words_about_the_model(error)
    place = exhausted_memory(cause)
    if place is not None:
        return (
            f"The run needs more {place} than there is. In order of effect: use_4bit, gradient_checkpointing, "
            "a smaller max_length, an 8bit optimizer_type, a smaller lora_r"
        )
    if disk_is_full(cause):
        written = "the model's files" if cause is not error else getattr(error, "filename", None) or folder.path
        return f"The disk is full: no room to write {written}. Free some space, then resume or retry"
    if isinstance(error, MerlinaError):
        return error.message
    if isinstance(error, PermissionError):
        return f"{error.filename} can't be written to: {error.strerror}"
    return f"Unexpected {type(error).__name__}: {first_line(error)}. The traceback is in {folder.log_file}"


def _behind_words_about_the_model(error: Exception) -> BaseException:
    """What was raised while a model was loaded: its files are not at fault where it was disk or memory."""
    return error.__cause__ or error if isinstance(error, ModelError) else error
