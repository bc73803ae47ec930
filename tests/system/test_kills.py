"""A run whose worker is killed at random moments ends with the very weights of one that wasn't disturbed."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from tests.harness import Server, until
from tests.system.test_pauses import assert_same_weights
from tests.system.test_recovery import Config

KILLS = int(os.environ.get("KILLS", "3"))
SAVE_STEPS = 7
_AT_WORK = ("loading_model", "loading_dataset", "training")


def test_kills_at_random_moments_change_no_weight(server: Server, config: Config) -> None:
    """KILLS of them: while loading, in the middle of a step or of writing a checkpoint. SEED says which moments."""
    seed = int(os.environ.get("SEED", "7"))
    draw = random.Random(seed)
    steps: dict[str, Any] = {
        "max_steps": 40 + 40 * KILLS,
        "num_epochs": 1000,
        "save_steps": SAVE_STEPS,
        "eval_steps": 0,
    }
    whole = server.train(config(server, "whole", **steps))
    assert server.until_ended(whole, 300).status == "completed"
    job = server.train(config(server, "killed", **steps))
    server.until_step(job, SAVE_STEPS + 1)
    for number in range(1, KILLS + 1):
        until(lambda: server.status(job).status in _AT_WORK, 30, f"attempt {number} of seed {seed}")
        server.until_step(job, (server.status(job).last_checkpoint or 0) + draw.randrange(20))
        time.sleep(draw.uniform(0, 0.1))  # not for luck: so that it falls anywhere between two looks
        server.kill_worker(job)
        failed = server.until_ended(job, 20)
        assert (failed.status, failed.attempt) == ("failed", number), (seed, failed)
        with server.client() as client:
            client.resume(job)
    ended = server.until_ended(job, 300)
    assert (ended.status, ended.attempt) == ("completed", KILLS + 1)
    assert server.losses(job) == server.losses(whole)
    assert_same_weights(server, "killed", "whole")
