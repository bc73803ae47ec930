from __future__ import annotations

from typing import Any

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


def test_gpus_are_shared_only_where_that_was_asked_for() -> None:
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
