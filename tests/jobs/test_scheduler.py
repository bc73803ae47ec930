from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina.hardware.gpus import Gpu
from merlina.jobs.scheduler import Plan, plan
from tests.jobs.records import job


def gpus(*free: int) -> list[Gpu]:
    return [Gpu(index, "GPU", 24_000, memory, 24_000 - memory) for index, memory in enumerate(free)]


def planned(queued: list[Any], running: list[Any], cards: list[Gpu], slots: int = 4, share: bool = False) -> Plan:
    return plan(queued, running, cards, max_concurrent=slots, share_gpus=share)


def starts(result: Plan) -> list[tuple[str, list[int] | None]]:
    return [(start.record.job_id, start.gpus) for start in result.starts]


def test_without_gpus_jobs_start_in_order_until_the_slots_are_full() -> None:
    waiting = [job(job_id=name) for name in "abc"]
    result = planned(waiting, [job(job_id="r", state="training")], [], slots=3)
    assert starts(result) == [("a", None), ("b", None)]
    assert result.waiting == {"c": "a free slot"}


def test_each_job_gets_the_gpu_with_the_most_free_memory_that_no_other_has() -> None:
    waiting = [job(job_id=name) for name in "abc"]
    result = planned(waiting, [job(job_id="r", state="training", gpus=[1])], gpus(10, 30, 20))
    assert starts(result) == [("a", [2]), ("b", [0])]
    assert result.waiting == {"c": "a free GPU"}


def test_a_job_that_waits_for_its_gpu_does_not_hold_up_one_behind_it() -> None:
    waiting = [job(job_id="a", config={"gpu_ids": [0]}), job(job_id="b", config={"gpu_ids": [1]})]
    result = planned(waiting, [job(job_id="r", state="training", gpus=[0])], gpus(10, 10))
    assert starts(result) == [("b", [1])]
    assert result.waiting == {"a": "GPU 0"}


def test_a_job_waits_for_another_that_saves_into_its_folder_and_holds_up_none_behind_it() -> None:
    waiting = [job(job_id="a", target_dir="/m/r/inner"), job(job_id="b"), job(job_id="c", target_dir="/m/b")]
    result = planned(waiting, [job(job_id="r", state="training")], [])
    assert starts(result) == [("b", None)]
    saves = "which saves into the same folder"
    assert result.waiting == {"a": f"r, {saves}", "c": f"b, {saves}"}


def test_gpus_are_shared_only_if_the_settings_allow_it() -> None:
    running = [job(job_id="r", state="training", gpus=[0])]
    assert starts(planned([job(job_id="a")], running, gpus(10))) == []
    assert starts(planned([job(job_id="a")], running, gpus(10), share=True)) == [("a", [0])]


@given(
    wanted=st.lists(st.none() | st.sets(st.integers(0, 3), min_size=1).map(sorted), max_size=8),
    slots=st.integers(1, 6),
    cards=st.integers(1, 4),
)
def test_no_plan_gives_a_gpu_twice_or_more_jobs_than_slots(wanted: list[Any], slots: int, cards: int) -> None:
    waiting = [job(job_id=str(n), config={"gpu_ids": ids}) for n, ids in enumerate(wanted)]
    result = planned(waiting, [], gpus(*range(cards)), slots=slots)
    given_out = [index for start in result.starts for index in start.gpus or []]
    assert len(given_out) == len(set(given_out))
    assert len(result.starts) <= slots
    assert {start.record.job_id for start in result.starts} | set(result.waiting) == {r.job_id for r in waiting}


def low(job_id: str, number: int, **changes: Any) -> Any:
    given = {"state": "training", "priority": 1, "preemptible": True, "number": number, **changes}
    return job(job_id=job_id, **given)


def preempted(result: Plan) -> list[tuple[str, str]]:
    return [(record.job_id, by) for record, by in result.preempted]


def high(job_id: str = "h", **config: Any) -> Any:
    return job(job_id=job_id, priority=5, config=config)


@pytest.mark.parametrize(
    ("running", "queued", "cards", "slots", "expected"),
    [
        pytest.param([low("a", 1), low("b", 2)], [high()], (), 2, [("b", "h")], id="the youngest"),
        pytest.param([low("a", 1)], [high()], (), 2, [], id="none if a slot is free"),
        pytest.param([low("a", 1)], [job(job_id="n")], (), 1, [], id="not for normal priority"),
        pytest.param([low("a", 1, preemptible=False)], [high()], (), 1, [], id="not one that may not be"),
        pytest.param([low("a", 1, priority=3)], [high()], (), 1, [], id="not one of normal priority"),
        pytest.param([low("a", 1, state="saving")], [high()], (), 1, [], id="not one that saves"),
        pytest.param([low("a", 1, stop_requested_at=1.0)], [high()], (), 1, [], id="not one that stops"),
        pytest.param([low("a", 1, pause_requested_at=1.0)], [high()], (), 1, [], id="not twice"),
        pytest.param(
            [low("a", 1, gpus=[0]), low("b", 2, gpus=[1])],
            [high(gpu_ids=[0])], (9, 9), 4, [("a", "h")], id="the one with the GPU",
        ),
        pytest.param(
            [low("a", 1, gpus=[0]), low("b", 2, gpus=[1], preemptible=False)],
            [high(gpu_ids=[0, 1])], (9, 9), 4, [], id="not for one that would wait on",
        ),
        pytest.param(
            [low("a", 1, gpus=[0]), low("b", 2, gpus=[1])],
            [high(gpu_ids=[0, 1])], (9, 9), 4, [("b", "h"), ("a", "h")], id="as many as it takes",
        ),
        pytest.param(
            [low("a", 1, gpus=[0]), low("b", 2, gpus=[1])],
            [high("h"), high("i")], (9, 9), 4, [("b", "h"), ("a", "i")], id="each for one",
        ),
        pytest.param([low("a", 1), low("b", 2)], [high("h")], (), 1, [("b", "h"), ("a", "h")], id="too many run"),
        pytest.param(
            [low("a", 1, gpus=[0]), low("b", 2, gpus=[1])],
            [high(gpu_ids=[0])], (9, 9), 2, [("a", "h")], id="not the youngest as well if its GPU does not help",
        ),
        pytest.param(
            [low("a", 1), job(job_id="n", state="training", stop_requested_at=1.0)],
            [high()], (), 2, [], id="none if another one ends anyway",
        ),
        pytest.param(
            [low("a", 1), low("b", 2, pause_requested_at=1.0, preempted_by="h")],
            [high("h"), high("i")], (), 2, [("a", "i")], id="one that ends frees one slot only",
        ),
        pytest.param(
            [low("a", 1, gpus=[0]), job(job_id="n", state="training", gpus=[0, 1])],
            [high(gpu_ids=[0])], (9, 9), 4, [], id="not if another one has the GPU too",
        ),
    ],
)  # fmt: skip
def test_which_jobs_are_preempted(
    running: list[Any], queued: list[Any], cards: tuple[int, ...], slots: int, expected: list[tuple[str, str]]
) -> None:
    assert preempted(planned(queued, running, gpus(*cards), slots=slots)) == expected


def test_a_job_that_is_being_preempted_is_waited_for() -> None:
    running = [low("a", 1), low("b", 2, pause_requested_at=1.0, preempted_by="h")]
    result = planned([high()], running, [], slots=2)
    assert preempted(result) == []
    assert result.waiting == {"h": "b to pause"}


def test_a_high_job_waits_for_the_jobs_it_preempts() -> None:
    result = planned([high(), job(job_id="n")], [low("a", 1)], [], slots=1)
    assert result.waiting == {"h": "a to pause", "n": "a free slot"}


@given(
    held=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 3), max_size=2).map(sorted)), max_size=4),
    wanted=st.lists(st.none() | st.sets(st.integers(0, 3), min_size=1).map(sorted), min_size=1, max_size=3),
    slots=st.integers(1, 5),
)
def test_preempted_jobs_let_one_start_and_none_of_them_could_stay(
    held: list[Any], wanted: list[Any], slots: int
) -> None:
    running = [low(str(n), n, gpus=ids, preemptible=may) for n, (may, ids) in enumerate(held)]
    cards = gpus(1, 1, 1, 1)
    first = high("first", gpu_ids=wanted[0])
    asked = planned([first], running, cards, slots=slots).preempted
    leaving = [record for record, _ in asked]
    assert all(record.preemptible for record in leaving)
    if leaving:
        stay = [record for record in running if record not in leaving]
        assert starts(planned([first], stay, cards, slots=slots))
        for record in leaving:
            assert not starts(planned([first], [*stay, record], cards, slots=slots))
    all_planned = planned([high(str(n), gpu_ids=ids) for n, ids in enumerate(wanted)], running, cards, slots=slots)
    named = [record.job_id for record, _ in all_planned.preempted]
    assert len(named) == len(set(named))
