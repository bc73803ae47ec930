"""The pure function from a job record and an event to the changed record, for the database and for live connections."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch
from typing import Any

from merlina.domain.job_states import END_STATE_FOR, EndReason, is_legal_in_log, may_begin_attempt
from merlina.schemas import events
from merlina.storage.jobs import JobRecord

_SHOWN_METRICS = ("loss", "eval_loss", "learning_rate", "gpu_memory")


def fold(record: JobRecord, event: events.BaseEvent) -> JobRecord:
    """Return the record after the event. An event with an illegal transition only counts as a skipped line."""
    skipped = {"skipped_lines": record.skipped_lines + 1}
    changes = _changes(event, record) if _is_legal(event, record) else skipped
    return replace(record, **changes, last_seq=event.seq, updated_at=event.time)


def _is_legal(event: events.BaseEvent, record: JobRecord) -> bool:
    match event:
        case events.Started():
            return not _is_next_attempt(event, record) or may_begin_attempt(record.state)
        case events.StateChanged() | events.Ended():
            return is_legal_in_log(record.state, event.state)
        case events.Paused():
            return is_legal_in_log(record.state, "paused")
    return True


def _is_next_attempt(event: events.Started, record: JobRecord) -> bool:
    return event.attempt > record.attempt_seen


@singledispatch
def _changes(event: events.BaseEvent, _record: JobRecord) -> dict[str, Any]:  # noqa: ARG001
    return {}


@_changes.register
def _(event: events.Started, record: JobRecord) -> dict[str, Any]:
    changes = {"started_at": record.started_at or event.time, "worker": event.process}
    if not _is_next_attempt(event, record):
        return changes
    # The transitions that led to this attempt, such as a resume, are the server's and not in the log.
    return {**changes, "attempt_seen": event.attempt, "state": "initializing", "error": None, "ended_at": None}


@_changes.register
def _(event: events.Resumed, _record: JobRecord) -> dict[str, Any]:
    return {"step": event.step, "last_checkpoint": event.step or None}


@_changes.register
def _(event: events.StateChanged, record: JobRecord) -> dict[str, Any]:
    return {"state": event.state, "output_dir": event.output_dir or record.output_dir}


@_changes.register
def _(event: events.Progress, record: JobRecord) -> dict[str, Any]:
    fraction = min(1.0, event.step / event.total_steps) if event.total_steps else 0.0
    return {"step": event.step, "total_steps": event.total_steps, "progress": max(record.progress, fraction)}


@_changes.register
def _(event: events.Metrics, _record: JobRecord) -> dict[str, Any]:
    return {name: event.metrics[name] for name in _SHOWN_METRICS if event.metrics.get(name) is not None}


@_changes.register
def _(event: events.Checkpointed, _record: JobRecord) -> dict[str, Any]:
    return {"last_checkpoint": event.step}


@_changes.register
def _(event: events.Placed, _record: JobRecord) -> dict[str, Any]:
    return {"output_dir": event.folder}


@_changes.register
def _(event: events.Moved, record: JobRecord) -> dict[str, Any]:
    # The model of an earlier attempt. `storage.jobs.move_model` updates the rows of other jobs.
    return {"output_dir": event.kept_as} if record.output_dir == event.folder else {}


@_changes.register
def _(event: events.Linked, _record: JobRecord) -> dict[str, Any]:
    return {"wandb_url": event.wandb_url}


@_changes.register
def _(event: events.Paused, record: JobRecord) -> dict[str, Any]:
    changes = {"gpus": None, "last_checkpoint": _last_checkpoint(event, record)}
    if record.stop_requested_at is None:
        return {**changes, "state": "paused"}
    # A stop that arrived too late for the worker: the job must not be paused in between, where a resume would start it.
    return {**changes, "state": END_STATE_FOR[EndReason.STOP_REQUESTED], "ended_at": event.time}


@_changes.register
def _(event: events.Ended, record: JobRecord) -> dict[str, Any]:
    has_completed = event.state == "completed"
    return {
        **_metrics_of_saved_model(event),
        "state": event.state,
        "error": event.error,
        # The event `uploading` named the folder already, and another run may have moved the model since.
        "output_dir": record.output_dir if record.state == "uploading" else event.output_dir or record.output_dir,
        "final_metrics": event.final_metrics,
        "progress": 1.0 if has_completed else record.progress,
        "last_checkpoint": None if has_completed else _last_checkpoint(event, record),
        "ended_at": event.time,
    }


def _metrics_of_saved_model(event: events.Ended) -> dict[str, Any]:
    """Return the losses of the saved model, which are shown for its job and may differ from the newest ones."""
    if "kept_step" not in event.final_metrics:
        return {}
    evaluated = {"eval_loss": event.final_metrics.get("final_eval_loss")}
    return evaluated | ({"loss": event.final_metrics["final_loss"]} if "final_loss" in event.final_metrics else {})


def _last_checkpoint(event: events.Paused | events.Ended, record: JobRecord) -> int | None:
    """Return the step of the checkpoint found on disk at the end. Logs of earlier versions do not state it."""
    return event.checkpoint_step if "checkpoint_step" in event.model_fields_set else record.last_checkpoint
