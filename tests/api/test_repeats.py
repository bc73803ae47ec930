from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness import add_running_job

Config = Callable[..., dict[str, Any]]


def test_what_is_asked_again_and_again_is_never_older_than_what_was_done(
    new_server: Any, config: Config, tmp_path: Path
) -> None:
    # The one slot is taken, so that no worker need be started.
    folder = add_running_job(tmp_path, "job_20250101_000000")
    with folder.locked():
        server = new_server()
        with server.http() as http:
            for number in range(20):
                job_id = server.train(config(server, f"polled_{number}"))
                assert [http.get("/jobs").json()[job_id]["status"] for _ in range(2)] == ["queued", "queued"]
                assert [http.get(f"/status/{job_id}").json()["queue_position"] for _ in range(2)] == [1, 1]
                http.post(f"/jobs/{job_id}/stop").raise_for_status()
                assert http.get("/jobs").json()[job_id]["status"] == "cancelled"
                assert [http.get(f"/status/{job_id}").json()["status"] for _ in range(2)] == ["cancelled"] * 2
                http.delete(f"/jobs/{job_id}").raise_for_status()
                assert http.get(f"/status/{job_id}").status_code == 404
                assert job_id not in http.get("/jobs").json()


def test_a_repeated_answer_is_the_same_for_who_may_have_it_and_denied_to_others(new_server: Any) -> None:
    server = new_server(API_KEY="secret", CORS_ORIGINS="http://here.example")
    with server.http(headers={"X-API-Key": "secret"}) as http:
        origin = {"Origin": "http://here.example"}
        answers = [http.get("/jobs", headers=origin) for _ in range(3)]
        assert all(answer.json() == {} for answer in answers)
        for answer in answers:
            assert answer.headers.get_list("access-control-allow-origin") == ["http://here.example"]
        assert "access-control-allow-origin" not in http.get("/jobs").headers
    with server.http() as http:
        assert http.get("/jobs").status_code == 401
