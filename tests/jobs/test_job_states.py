from __future__ import annotations

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from merlina.domain.job_states import (
    END_STATE_FOR,
    PAUSABLE_RUN_STATES,
    TRANSITIONS,
    EndReason,
    EndState,
    JobState,
    is_legal,
)

ORDER = get_args(JobState)
STATES = st.sampled_from(ORDER)


def test_every_state_has_its_moves_and_every_cause_its_end() -> None:
    assert set(TRANSITIONS) == set(ORDER)
    assert set(END_STATE_FOR) == set(EndReason)


@given(current=STATES, new=STATES)
def test_a_job_moves_forward_only_and_only_a_resume_leads_back(current: JobState, new: JobState) -> None:
    if not is_legal(current, new):
        return
    resumed = current in ("failed", "stopped", "cancelled", "paused") and new == "queued"
    assert resumed or ORDER.index(new) > ORDER.index(current)


@given(current=st.sampled_from(get_args(EndState)))
def test_an_ended_job_is_never_given_another_end(current: JobState) -> None:
    assert not any(is_legal(current, end) for end in get_args(EndState))


def test_a_pause_is_possible_until_the_model_is_being_saved_and_is_no_end() -> None:
    pausable = {state for state in ORDER if is_legal(state, "paused")}
    assert pausable == {"queued", *PAUSABLE_RUN_STATES} == {"queued", *ORDER[1:5]}
    assert {state for state in ORDER if is_legal("paused", state)} == {"queued", "stopped", "cancelled"}


def test_a_job_completes_only_after_saving() -> None:
    assert {state for state in ORDER if is_legal(state, "completed")} == {"saving", "uploading"}
