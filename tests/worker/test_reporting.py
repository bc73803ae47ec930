"""The metrics that an attempt reads from the event log of earlier attempts."""

from __future__ import annotations

from pathlib import Path

import pytest

from merlina.run_folder.event_log import EventLog
from merlina.worker.run.reporting import EventReporter, NullChannel


def first_attempt(log: EventLog) -> None:
    """An attempt that evaluated before training and at step 4, and trained up to step 6."""
    reporter = EventReporter(log, NullChannel())
    reporter.metrics(0, {"eval_loss": 9.0})
    for step in range(1, 7):
        reporter.metrics(step, {"loss": 10.0 + step}, awaits_evaluation=step == 4)
        if step == 4:
            reporter.metrics(step, {"eval_loss": 4.0})


@pytest.mark.parametrize(
    ("resumed_at", "recalled", "initial", "loss"),
    [(5, {"loss": 14.0, "eval_loss": 4.0}, 9.0, 14.0), (2, {}, 9.0, 0.5), (0, {}, 8.0, 0.5)],
)
def test_evaluations_of_repeated_steps_are_ignored(
    tmp_path: Path, resumed_at: int, recalled: dict[str, float], initial: float, loss: float
) -> None:
    """The third attempt continues at step 4, which the second one reached without evaluating it."""
    log = EventLog(tmp_path / "events.jsonl")
    first_attempt(log)
    second = EventReporter(log, NullChannel())
    second.resumed(resumed_at)
    if resumed_at == 0:
        second.metrics(0, {"eval_loss": 8.0})
    for step in range(resumed_at + 1, 5):
        second.metrics(step, {"loss": 0.5})
    third = EventReporter(log, NullChannel())
    third.resumed(4)
    third.recall(tmp_path / "events.jsonl", 4)
    log.close()
    assert third.recalled_evaluation == recalled
    third.model_selected(4)
    final = third.final_metrics()
    assert (final["initial_eval_loss"], final["final_loss"]) == (initial, loss)
    assert final.get("final_eval_loss") == recalled.get("eval_loss")
