"""A crash at any named moment of a start, a save, a pause, a resume or the end of a run costs only time.

With `--long` every fault point is reached. After each crash the job can be resumed; the response, the job's last
checkpoint, its error and its log agree on the step; no step is missing or recorded twice; and the finished adapter is
bit for bit that of an undisturbed run (float32, one thread).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from merlina.errors import ServerError
from merlina.faults import SERVER_POINTS, FaultPoint
from merlina.run_folder.event_log import read_events
from tests.harness import ENDED, Server, pairs_file, training_config, until
from tests.system.test_pauses import assert_same_weights
from tests.system.test_recovery import Config, NewServer

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {
    "max_steps": 8, "num_epochs": 100, "save_steps": 2, "eval_steps": 2, "training_mode": "dpo",
    "load_best_at_end": "eval_loss",
}  # fmt: skip
LONG = {**SHORT, "max_steps": 60, "save_steps": 10, "eval_steps": 20}
WORKER_POINTS = [point for point in FaultPoint if point not in SERVER_POINTS]
# One job crashes at one point after the other, except where a crash leaves too little to do for the next point.
CHAINS = [
    [point for point in WORKER_POINTS if point.startswith(group)] for group in ("start.", "save.", "rotate.", "pause.")
] + [
    [FaultPoint.SAVE_REPORTED, *(point for point in WORKER_POINTS if point.startswith("resume."))],
    *([point] for point in WORKER_POINTS if point.startswith("end.")),
]  # fmt: skip
# One of each kind, on one job, from its start to its end.
SHORT_CHAIN = [
    FaultPoint.START_FIRST_STEP, FaultPoint.SAVE_REPORTED, FaultPoint.RESUME_LOADED, FaultPoint.ROTATE_REMOVED,
    FaultPoint.END_PLACED,
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(server: Server, tiny_model: Path) -> str:
    job = server.train({**training_config(tiny_model, pairs_file(server.root / "pairs.jsonl"), "calm"), **SHORT})
    assert server.until_ended(job).status == "completed"
    return job


def test_every_point_is_reached_and_documented() -> None:
    assert {point for chain in CHAINS for point in chain} | SERVER_POINTS == set(FaultPoint)
    architecture = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    rows = "".join(re.findall(r"^\| (`[a-z.` _]+`) \|", architecture, re.MULTILINE))
    assert set(re.findall(r"`([a-z_]+\.[a-z_]+)`", rows)) - {"errors.py"} >= set(FaultPoint)


@pytest.mark.parametrize(
    "points",
    [pytest.param(SHORT_CHAIN, id="one of each"), *(pytest.param(c, id=c[-1], marks=pytest.mark.long) for c in CHAINS)],
)
def test_a_worker_crash_costs_nothing_but_time(
    server: Server, config: Config, undisturbed: str, points: list[FaultPoint]
) -> None:
    name = f"{len(points)}-crashes-{points[-1]}"
    # An older model, which must be renamed before the new one can take its place.
    shutil.copytree(server.root / "models" / "calm", server.root / "models" / name)
    uploads = {"push_to_hub": True, "hf_token": "hf_none"} if points == [FaultPoint.END_UPLOADED] else {}
    server.crash_file.write_text(points[0])
    job = server.train(config(server, name, **SHORT, **uploads))
    for point, following in zip(points, [*points[1:], None], strict=True):
        if point.startswith("pause."):
            server.until_step(job, 3)
            with server.client() as client:
                client.pause(job)
        until(lambda: not server.crash_file.exists(), 60, f"the crash at {point}")
        status = until(lambda: (s := server.status(job)).status in (*ENDED, "paused") and s, 20, f"the end at {point}")
        if status.status == "completed":
            assert point in (FaultPoint.END_REPORTED, FaultPoint.END_HALF_CLEANED)
            break
        if point in (FaultPoint.END_PLACED, FaultPoint.END_PLACED_REPORTED):
            assert status.output_dir == str(server.root / "models" / name)
        assert status.status == ("paused" if point.startswith("pause.") else "failed"), (point, status)
        if following is not None:
            server.crash_file.write_text(following)
        resume(server, job, point)
    ended = server.until_ended(job)
    assert (ended.status, ended.error, ended.last_checkpoint) == ("completed", None, None)
    assert ended.output_dir == str(server.root / "models" / name)
    assert server.losses(job) == server.losses(undisturbed)
    assert_same_weights(server, name, "calm")
    until(lambda: not server.folder(job).checkpoints_dir.exists(), 5, "the removal of the checkpoints")


@pytest.mark.parametrize(
    ("point", "changes"),
    [
        (FaultPoint.END_TRAINED, {"save_steps": 2}),
        # Its newest checkpoint is older than its last step, and an upload needs the model in memory.
        pytest.param(
            FaultPoint.END_UPLOADED,
            {"save_steps": 3, "push_to_hub": True, "hf_token": "hf_none"},
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_run_that_ended_early_ends_at_the_same_step_after_a_crash(
    server: Server, config: Config, point: FaultPoint, changes: dict[str, Any]
) -> None:
    """The learning rate is too small to change any evaluation, so that the second one is no better than the first."""
    early = {**SHORT, "load_best_at_end": None, "early_stopping_patience": 1, "learning_rate": 1e-30, **changes}
    server.crash_file.write_text(point)
    job = server.train(config(server, f"early-{point}", **early))
    assert server.until_ended(job).status == "failed"
    assert not server.crash_file.exists()
    resume(server, job, point)
    ended = server.until_ended(job)
    assert (ended.status, ended.error, ended.current_step) == ("completed", None, 4)
    assert list(server.losses(job)) == [1, 2, 3, 4]


@pytest.mark.long
def test_a_server_crash_costs_nothing_but_time(new_server: NewServer, config: Config) -> None:
    server = new_server()
    reached = set()

    def crash_at(point: FaultPoint, request: Callable[[], object]) -> None:
        server.crash_file.write_text(point)
        with contextlib.suppress(ServerError, httpx.TransportError):
            request()
        assert server.process is not None
        server.process.wait(20)
        server.start()
        reached.add(point)

    calm = server.train(config(server, "calm", **LONG))
    assert server.until_ended(calm).status == "completed"
    jobs = {point: "" for point in sorted(SERVER_POINTS) if point.startswith("start.")}
    for point in jobs:
        crash_at(point, lambda point=point: server.train(config(server, point, **LONG)))
        jobs[point] = server.history()[0]
        assert server.until_ended(jobs[point], 180).status == "completed"

    job = server.train(config(server, "pauses", **LONG))
    with server.client() as client:
        for point, step in ((FaultPoint.PAUSE_REQUESTED, 12), (FaultPoint.PAUSE_DELIVERED, 32)):
            server.until_step(job, step)
            server.kill_worker(job, signal.SIGSTOP)  # so that it has not ended when the next server starts
            crash_at(point, lambda: client.pause(job))
            server.kill_worker(job, signal.SIGCONT)
            until(lambda: server.status(job).status == "paused", 60, f"the pause after {point}")
            if point == FaultPoint.PAUSE_REQUESTED:
                resume(server, job, point)
        crash_at(FaultPoint.RESUME_PREPARED, lambda: client.resume(job))
        assert server.status(job).status == "paused"
        crash_at(FaultPoint.RESUME_QUEUED, lambda: client.resume(job))
    assert server.until_ended(job).status == "completed"
    assert reached == SERVER_POINTS
    for name in (*jobs.values(), job):
        assert server.losses(name) == server.losses(calm)
    for name in (*jobs, "pauses"):
        assert_same_weights(server, name, "calm")


def resume(server: Server, job: str, point: str) -> None:
    """Resume, and compare everything that names a step with the step at which the run continues."""
    status = server.status(job)
    seq = status.seq
    with server.client() as client:
        response = client.resume(job)
    announced = [
        int(step) for step in re.findall(r"step (\d+)|All (\d+) steps", response.message) for step in step if step
    ]
    step = announced[0] if "starts at step 1" not in response.message else 0
    assert (status.last_checkpoint or 0) in (step, 0), (point, status, response)
    if status.error and step and "model is complete" not in status.error:
        assert f"at step {step}," in status.error, (point, status.error)
    until(
        lambda: any(event.type == "resumed" for event in events_after(server, job, seq)) or not alive(server, job), 180
    )
    for event in events_after(server, job, seq):
        if event.type == "resumed":
            assert (event.step, event.announced_step) == (step, None), (point, event)


def alive(server: Server, job: str) -> bool:
    return server.status(job).status not in ENDED


def events_after(server: Server, job: str, seq: int) -> Iterator[Any]:
    offset = 0
    while True:
        found, offset = read_events(server.folder(job).events_file, offset)
        if not found:
            return
        yield from (event for event in found if event.seq > seq)
