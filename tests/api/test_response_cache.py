from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.harness import Server, acting_worker

Config = Callable[..., dict[str, Any]]


def test_a_cached_response_is_never_outdated(server: Server, config: Config) -> None:
    with acting_worker(server), server.http() as http:
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
