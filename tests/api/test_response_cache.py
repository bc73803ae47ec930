from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from tests.harness import Server

Config = Callable[..., dict[str, Any]]


def test_a_cached_response_is_never_outdated(server: Server, config: Config) -> None:
    # It has the one slot, and stands still, so that no other worker is started.
    in_front = server.train(config(server, "in_front", max_steps=100_000, eval_steps=0, save_steps=0))
    server.until_step(in_front, 1)
    server.kill_worker(in_front, signal.SIGSTOP)
    with server.http() as http:
        for number in range(10):
            job_id = server.train(config(server, f"polled_{number}"))
            assert [http.get("/jobs").json()[job_id]["status"] for _ in range(2)] == ["queued", "queued"]
            assert [http.get(f"/status/{job_id}").json()["queue_position"] for _ in range(2)] == [1, 1]
            http.post(f"/jobs/{job_id}/stop").raise_for_status()
            assert http.get("/jobs").json()[job_id]["status"] == "cancelled"
            assert [http.get(f"/status/{job_id}").json()["status"] for _ in range(2)] == ["cancelled"] * 2
            http.delete(f"/jobs/{job_id}").raise_for_status()
            assert http.get(f"/status/{job_id}").status_code == 404
            assert job_id not in http.get("/jobs").json()
        http.post(f"/jobs/{in_front}/stop").raise_for_status()
    server.kill_worker(in_front, signal.SIGCONT)
    server.until_ended(in_front)
