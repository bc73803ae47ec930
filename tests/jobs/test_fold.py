from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from merlina.domain.job_states import EndState, JobState, is_legal_in_log
from merlina.jobs.fold import fold
from merlina.schemas.events import EVENT
from tests.jobs.records import job

STATES = get_args(JobState)


def event(seq: int, kind: str, **fields: Any) -> Any:
    return EVENT.validate_python({"seq": seq, "time": float(seq), "type": kind, **fields})


events = st.one_of(
    st.builds(lambda s: ("state", {"state": s}), st.sampled_from(STATES)),
    st.builds(lambda a, b: ("progress", {"step": min(a, b), "total_steps": b}), st.integers(0, 50), st.integers(0, 50)),
    st.builds(lambda s: ("ended", {"state": s}), st.sampled_from(get_args(EndState))),
    st.builds(lambda a: ("started", {"attempt": a, "pid": 1}), st.integers(0, 3)),
    st.just(("paused", {"reason": "a pause was requested"})),
    st.builds(lambda s: ("resumed", {"step": s}), st.integers(0, 50)),
    st.builds(lambda v: ("metrics", {"step": 1, "metrics": {"loss": v}}), st.floats() | st.none()),
)


@given(happened=st.lists(events, max_size=20))
def test_for_any_log_progress_never_falls_and_a_job_ends_once_per_attempt(happened: list[tuple[str, Any]]) -> None:
    record, ends, restarts = job(state="initializing"), 0, 0
    for seq, (kind, fields) in enumerate(happened, start=1):
        before, record = record, fold(record, event(seq, kind, **fields))
        assert record.last_seq == seq
        assert before.progress <= record.progress <= 1
        if before.is_ended:
            assert record.state in (before.state, "queued", "initializing")
        ends += record.is_ended and not before.is_ended
        restarts += before.is_ended and not record.is_ended
    assert ends <= 1 + restarts


@given(state=st.sampled_from(STATES), attempt_seen=st.integers(0, 2), happened=events)
def test_no_event_leads_to_a_state_that_the_table_does_not_allow(
    state: JobState, attempt_seen: int, happened: tuple[str, Any]
) -> None:
    kind, fields = happened
    record = job(state=state, attempt_seen=attempt_seen)
    after = fold(record, event(1, kind, **fields))
    if after.state != state:
        assert after.state == "initializing" if kind == "started" else is_legal_in_log(state, after.state)
        assert state != "completed"
    elif kind in ("state", "paused", "ended"):
        assert after == replace(record, skipped_lines=1, last_seq=1, updated_at=1.0)


def test_an_attempt_may_begin_if_the_log_lacks_the_end_of_the_last_one() -> None:
    record = fold(job(state="training", attempt_seen=1), event(1, "started", attempt=2, pid=9))
    assert (record.state, record.skipped_lines) == ("initializing", 0)


def test_a_completed_job_is_not_started_again() -> None:
    record = fold(job(state="completed", attempt_seen=1), event(1, "started", attempt=2, pid=9))
    assert (record.state, record.skipped_lines) == ("completed", 1)


def test_a_run_completes_though_the_line_of_its_saving_was_damaged() -> None:
    assert fold(job(state="training"), event(1, "ended", state="completed")).state == "completed"


def test_a_whole_run() -> None:
    record = job(state="initializing")
    log = [
        event(1, "started", attempt=1, pid=9),
        event(2, "state", state="training"),
        event(3, "progress", step=5, total_steps=10),
        event(4, "metrics", step=5, metrics={"loss": 0.5, "learning_rate": 1e-5, "grad_norm": None}),
        event(5, "checkpoint", step=5, path="x"),
        event(6, "state", state="saving"),
        event(7, "ended", state="completed", output_dir="/m/o", final_metrics={"final_loss": 0.5}),
    ]
    for line in log:
        record = fold(record, line)
    assert (record.state, record.progress, record.step, record.loss) == ("completed", 1.0, 5, 0.5)
    assert (record.started_at, record.ended_at, record.last_checkpoint) == (1.0, 7.0, None)
    assert (record.output_dir, record.final_metrics) == ("/m/o", {"final_loss": 0.5})


def test_a_reader_that_saw_a_pause_last_follows_the_next_attempt() -> None:
    record = fold(job(state="training", attempt_seen=1, gpus=[0]), event(1, "paused", reason="someone"))
    assert (record.state, record.gpus, record.ended_at) == ("paused", None, None)
    for line in (event(2, "started", attempt=2, pid=9), event(3, "state", state="loading_model")):
        record = fold(record, line)
    assert (record.state, record.attempt_seen) == ("loading_model", 2)


def test_a_job_that_pauses_after_a_stop_was_requested_is_stopped_at_once() -> None:
    record = fold(job(state="training", stop_requested_at=2.5), event(3, "paused", reason="someone", checkpoint_step=8))
    assert (record.state, record.ended_at, record.last_checkpoint) == ("stopped", 3.0, 8)


def test_a_run_that_saves_its_model_is_not_paused_any_more() -> None:
    assert fold(job(state="saving"), event(1, "paused", reason="someone")).state == "saving"
