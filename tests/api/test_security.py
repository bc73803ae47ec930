from __future__ import annotations

from collections.abc import Callable

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.harness import Server


def test_where_a_key_is_set_every_request_must_carry_it(new_server: Callable[..., Server]) -> None:
    server = new_server(API_KEY="open sesame")
    with server.http() as http:
        assert http.get("/health").status_code == 200
        for headers in (
            {},
            {"X-API-Key": "wrong"},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "open sesame"},
        ):
            answer = http.get("/jobs", headers=headers)
            assert answer.status_code == 401, headers
            assert "X-API-Key" in answer.json()["detail"]
        for headers in ({"X-API-Key": "open sesame"}, {"Authorization": "Bearer open sesame"}):
            assert http.get("/jobs", headers=headers).status_code == 200, headers
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{server.port}/ws/x"):
        pass
    key = {"X-API-Key": "open sesame"}
    with connect(f"ws://127.0.0.1:{server.port}/ws/x", additional_headers=key) as socket:
        assert "Job not found" in str(socket.recv(timeout=10))
    assert "open sesame" not in (server.root / "server.log").read_text()
