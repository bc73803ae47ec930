"""A run killed, stopped and paused at random moments ends with exactly the weights of an undisturbed one.

The tests that run without `--long`, one kill at one step, are in test_recovery.py and test_fault_points.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.harness import ENDED, Server, until
from tests.system.test_fault_points import resume
from tests.system.test_pauses import assert_same_weights
from tests.system.test_recovery import Config, NewServer, spare_process

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "3"))
STEPS: dict[str, Any] = {
    "num_epochs": 1000, "save_steps": 7, "eval_steps": 10, "load_best_at_end": "eval_loss", "training_mode": "dpo",
}  # fmt: skip
_AT_REST = (*ENDED, "paused")


@pytest.mark.long
def test_kills_at_random_moments_change_no_weight(server: Server, config: Config, new_server: NewServer) -> None:
    """KILLS kills: while loading, in a step, an evaluation, a save, a stop or a pause. SEED determines the moments.

    Up to three kill only workers, of the server that all tests share.
    """
    if KILLS > 3:
        server = new_server(SPARE_PROCESSES="true")
    seed = int(os.environ.get("SEED", "7"))
    chaos = Chaos(server, random.Random(seed))
    steps = {**STEPS, "max_steps": 40 + 25 * KILLS}
    calm = server.train(config(server, "undisturbed-by-kills", **steps))
    assert server.until_ended(calm, 900 + 10 * KILLS).status == "completed"
    job = server.train(config(server, "killed", **steps))
    while sum(chaos.done.values()) < KILLS and server.status(job).status != "completed":
        chaos.disturb(job)
    ended = server.until_ended(job, 900 + 10 * KILLS)
    print(f"seed {seed}: {dict(chaos.done)}, {ended.attempt} attempts")
    assert ended.status == "completed"
    assert server.losses(job) == server.losses(calm)
    assert_same_weights(server, "killed", "undisturbed-by-kills")


class Chaos:
    """Disturbs a job in random ways, and resumes it after each."""

    def __init__(self, server: Server, draw: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._server = server
        self._draw = draw
        self._ways: dict[str, Callable[[str], None]] = {
            "worker": self._worker,
            "stop": self._stop,
            "pause": self._pause,
        }
        if KILLS > 3:
            self._ways |= {"server": self._server_alone, "both": self._both, "spare": self._spare}

    def disturb(self, job: str) -> None:
        self._wait(job)
        way = self._draw.choice(list(self._ways))
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            self._ways[way](job)
        if way in ("server", "spare"):
            self.done[way] += 1
            return
        status = until(lambda: (s := self._server.status(job)).status in _AT_REST and s, 180, f"the end after {way}")
        if status.status == "completed":
            return
        self.done[way] += 1
        resume(self._server, job, way)

    def _wait(self, job: str) -> None:
        """Wait until a random moment of the current attempt, possibly before its first step."""
        until(lambda: self._server.status(job).status not in ("queued", "paused"), 180, "the next attempt")
        beyond = (self._server.status(job).last_checkpoint or 0) + self._draw.randrange(-5, 20)
        until(lambda: (s := self._server.status(job)).status in ENDED or (s.current_step or 0) >= beyond, 180, "a step")
        time.sleep(self._draw.uniform(0, 0.1))  # so that the moment is not tied to the polling above

    def _worker(self, job: str) -> None:
        self._server.kill_worker(job)

    def _stop(self, job: str) -> None:
        with self._server.client() as client:
            client.stop(job)
        self._maybe_kill(job)

    def _pause(self, job: str) -> None:
        with self._server.client() as client:
            client.pause(job)
        self._maybe_kill(job)

    def _maybe_kill(self, job: str) -> None:
        """Kill the worker during a stop or a pause, in half of all cases."""
        if self._draw.random() < 0.5:
            time.sleep(self._draw.uniform(0, 0.3))
            self._server.kill_worker(job)

    def _server_alone(self, _job: str) -> None:
        self._server.kill()
        self._server.start()

    def _both(self, job: str) -> None:
        self._server.kill()
        self._server.kill_worker(job)
        self._server.start()

    def _spare(self, _job: str) -> None:
        spare = spare_process(self._server)
        if spare is not None:
            spare.kill()
