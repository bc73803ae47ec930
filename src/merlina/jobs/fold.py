"""What each event of a run changes in the job's record: pure, and the same for the database and for live readers."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import singledispatch
from typing import Any

from merlina.domain.job_states import is_legal
from merlina.schemas import events
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_SHOWN_FIGURES = ("loss", "eval_loss", "learning_rate", "gpu_memory")


def fold(record: JobRecord, event: events.BaseEvent) -> JobRecord:
    """The record after the event. `last_seq` moves on with every event, known or not."""
    changes = _changes(event, record)
    return replace(record, **changes, last_seq=event.seq, updated_at=event.time)


@singledispatch
def _changes(event: events.BaseEvent, _record: JobRecord) -> dict[str, Any]:  # noqa: ARG001
    return {}


@_changes.register
def _(event: events.Started, record: JobRecord) -> dict[str, Any]:
    # A live reader may last have seen the job waiting or paused: the way from there is in the database only.
    changes: dict[str, Any] = {"attempt_seen": event.attempt, "started_at": record.started_at or event.time}
    changes["worker"] = event.process
    if record.is_ended and event.attempt > record.attempt_seen:
        # A log that is read as a whole: that the job was resumed in between stood in a lost database only.
        return changes | {"state": "initializing", "error": None, "ended_at": None}
    return changes | {"state": record.state if record.is_running or record.is_ended else "initializing"}


@_changes.register
def _(event: events.Resumed, _record: JobRecord) -> dict[str, Any]:
    return {"step": event.step, "last_checkpoint": event.step or None}


@_changes.register
def _(event: events.StateChanged, record: JobRecord) -> dict[str, Any]:
    if not is_legal(record.state, event.state):
        _log.warning("%s: event %d asks for %s from %s; ignored", record.job_id, event.seq, event.state, record.state)
        return {}
    return {"state": event.state, "output_dir": event.output_dir or record.output_dir}


@_changes.register
def _(event: events.Progress, record: JobRecord) -> dict[str, Any]:
    share = min(1.0, event.step / event.total_steps) if event.total_steps else 0.0
    return {"step": event.step, "total_steps": event.total_steps, "progress": max(record.progress, share)}


@_changes.register
def _(event: events.Metrics, _record: JobRecord) -> dict[str, Any]:
    return {name: event.metrics[name] for name in _SHOWN_FIGURES if event.metrics.get(name) is not None}


@_changes.register
def _(event: events.Checkpointed, _record: JobRecord) -> dict[str, Any]:
    return {"last_checkpoint": event.step}


@_changes.register
def _(event: events.Placed, _record: JobRecord) -> dict[str, Any]:
    return {"output_dir": event.folder}


@_changes.register
def _(event: events.Moved, record: JobRecord) -> dict[str, Any]:
    # What an earlier attempt has saved; the models of other jobs are seen to by `storage.jobs.move_model`.
    return {"output_dir": event.kept_as} if record.output_dir == event.folder else {}


@_changes.register
def _(event: events.Linked, _record: JobRecord) -> dict[str, Any]:
    return {"wandb_url": event.wandb_url}


@_changes.register
def _(event: events.Paused, record: JobRecord) -> dict[str, Any]:
    if not is_legal(record.state, "paused"):
        return {}
    return {"state": "paused", "gpus": None, "last_checkpoint": _checkpoint_left(event, record)}


@_changes.register
def _(event: events.Ended, record: JobRecord) -> dict[str, Any]:
    if record.is_ended:
        _log.warning("%s: event %d ends a job that is %s already; ignored", record.job_id, event.seq, record.state)
        return {}
    return {
        **_figures_of_saved_model(event),
        "state": event.state,
        "error": event.error,
        # Told when the upload began, too; another run may have set it aside since.
        "output_dir": record.output_dir if record.state == "uploading" else event.output_dir or record.output_dir,
        "final_metrics": event.final_metrics,
        "progress": 1.0 if event.state == "completed" else record.progress,
        "last_checkpoint": None if event.state == "completed" else _checkpoint_left(event, record),
        "ended_at": event.time,
    }


def _figures_of_saved_model(event: events.Ended) -> dict[str, Any]:
    """The losses shown for a job with a saved model are those of that model, which need not be the newest ones."""
    if "kept_step" not in event.final_metrics:
        return {}
    evaluated = {"eval_loss": event.final_metrics.get("final_eval_loss")}
    return evaluated | ({"loss": event.final_metrics["final_loss"]} if "final_loss" in event.final_metrics else {})


def _checkpoint_left(event: events.Paused | events.Ended, record: JobRecord) -> int | None:
    """What was found on the disk at the end; logs of earlier versions do not say."""
    return event.checkpoint_step if "checkpoint_step" in event.model_fields_set else record.last_checkpoint
