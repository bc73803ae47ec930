from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from merlina.run_folder.event_log import EventLog
from merlina.schemas.events import Ended, Metrics, Progress
from tests.harness import Server, acting_worker, add_running_job, until

Config = Callable[..., dict[str, Any]]


def open_socket(server: Server, job_id: str, query: str = "") -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/ws/{job_id}{query}")


def messages(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Return all messages until the server closes, and its close code."""
    received = []
    while True:
        try:
            received.append(json.loads(socket.recv(timeout=60)))
        except ConnectionClosed as closed:
            return received, closed.rcvd.code if closed.rcvd else 0


@pytest.fixture(scope="module")
def watched(server: Server, tiny_model: Any) -> tuple[str, list[dict[str, Any]], int]:
    """A job that was watched from its submission to its end."""
    from tests.harness import pairs_file, training_config

    pairs = pairs_file(server.root / "live.jsonl")
    job_id = server.train(training_config(tiny_model, pairs, "live", max_steps=30, eval_steps=10))
    with open_socket(server, job_id) as socket:
        return job_id, *messages(socket)


def test_a_client_receives_every_state_every_step_and_one_last_message(watched: Any) -> None:
    job_id, received, code = watched
    assert code == 1000
    assert all(message["job_id"] == job_id for message in received)
    states = [message["status"] for message in received if message["type"] == "status_update"]
    order = ["queued", "initializing", "loading_model", "loading_dataset", "training", "saving"]
    assert sorted(set(states), key=order.index) == list(dict.fromkeys(states))
    assert set(states) >= set(order[1:])
    steps = [message["step"] for message in received if message["type"] == "metrics" and "loss" in message["metrics"]]
    assert steps == list(range(1, 31))
    assert [message["type"] for message in received].count("completed") == 1
    last = received[-1]
    assert last["type"] == "completed"
    assert last["output_dir"].endswith("/live")
    assert last["final_metrics"]["final_loss"] > 0


def test_messages_have_the_documented_keys_and_increasing_numbers(watched: Any) -> None:
    _, received, _ = watched
    keys = {
        "status_update": {
            "status", "progress", "current_step", "total_steps", "loss", "eval_loss", "learning_rate", "gpu_memory",
            "stop_requested", "pause_requested",
        },
        "metrics": {"step", "metrics"},
        "completed": {"output_dir", "final_metrics"},
        "log": {"level", "message"},
    }  # fmt: skip
    for message in received:
        assert set(message) == {"type", "job_id", "timestamp", "seq"} | keys[message["type"]], message
        assert isinstance(message["timestamp"], float)
    numbers = [message["seq"] for message in received]
    assert numbers == sorted(numbers)
    updates = [message for message in received if message["type"] == "status_update"]
    progress = [message["progress"] for message in updates]
    assert progress == sorted(progress)
    assert len({message["seq"] for message in updates}) == len(updates)
    assert received[0] == updates[0]


def test_a_step_is_one_message_with_the_metrics_of_training_and_evaluation(watched: Any) -> None:
    _, received, _ = watched
    metrics_by_step = {message["step"]: message["metrics"] for message in received if message["type"] == "metrics"}
    steps = [message["step"] for message in received if message["type"] == "metrics"]
    assert steps == sorted(set(steps))
    assert {step for step in steps if step and "eval_loss" in metrics_by_step[step]} == {10, 20, 30}
    assert all("loss" in metrics_by_step[step] for step in steps if step)


def test_an_ended_job_sends_its_snapshot_and_its_last_message(server: Server, watched: Any) -> None:
    with open_socket(server, watched[0]) as socket:
        received, code = messages(socket)
    assert ([message["type"] for message in received], code) == (["status_update", "completed"], 1000)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_a_reconnected_client_receives_every_message_exactly_once(server: Server, watched: Any, share: float) -> None:
    job_id, before, _ = watched
    lasting = [message for message in before if message["type"] in ("metrics", "log")]
    after = int(before[-1]["seq"] * share)
    with open_socket(server, job_id, f"?after={after}") as socket:
        received, _ = messages(socket)
    assert received[0]["type"] == "status_update"
    assert received[1:-1] == [message for message in lasting if message["seq"] > after]
    assert received[-1] == before[-1]


def test_an_unknown_job_is_an_error_and_4404(server: Server) -> None:
    with open_socket(server, "job_20000101_000000") as socket:
        received, code = messages(socket)
    assert code == 4404
    assert [(message["type"], message["error"]) for message in received] == [("error", "Job not found")]


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "", "1.0", "٣", "9" * 5000])
def test_an_invalid_after_is_an_error(server: Server, after: str) -> None:
    with open_socket(server, "job_20000101_000000", f"?after={quote(after)}") as socket:
        (message,), code = messages(socket)
    assert (code, message["type"], message["seq"]) == (4400, "error", 0)
    assert message["error"].startswith("after: must be the number of an event, 0 or more in at most 18 digits, not '")
    assert len(message["error"]) < 200


def test_the_response_to_any_message_of_a_client_is_a_heartbeat(server: Server) -> None:
    with acting_worker(server) as worker:
        job_id = worker.job_id
        with open_socket(server, job_id) as socket:
            for said in ("ping", "{}", b"\x00"):
                socket.send(said)
            heartbeats, first = 0, None
            while heartbeats < 3:
                message = json.loads(socket.recv(timeout=30))
                first = first or message
                heartbeats += message == {"type": "heartbeat", "status": "ok"}
            assert first is not None
            assert first["type"] == "status_update"
        with server.client() as client, open_socket(server, job_id) as socket:
            client.stop(job_id)
            worker.end(Ended(state="stopped"))
            received, code = messages(socket)
    assert (received[-1]["type"], received[-1]["status"], code) == ("status_update", "stopped", 1000)
    assert any(message.get("stop_requested") for message in received[:-1])
    with open_socket(server, job_id) as socket:
        received, _ = messages(socket)
    assert [(message["status"], message["stop_requested"]) for message in received] == [("stopped", False)] * 2
    assert received[0]["seq"] < received[1]["seq"]


def test_a_requested_stop_is_visible_at_once(server: Server) -> None:
    with acting_worker(server) as worker, server.client() as client, open_socket(server, worker.job_id) as socket:
        job_id = worker.job_id
        assert json.loads(socket.recv(timeout=10))["status"] == "training"
        client.pause(job_id)
        assert client.status(job_id).pause_requested
        client.stop(job_id)
        asked = []
        while len(asked) < 2:
            message = json.loads(socket.recv(timeout=10))
            asked += [message] if message["type"] == "request" else []
        assert [(one["stop_requested"], one["pause_requested"]) for one in asked] == [(False, True), (True, False)]
        for shown in (
            client.status(job_id),
            client.jobs()[job_id],
            client.history().jobs[0],
            client.queue_status().running_jobs[0],
        ):
            assert (shown.stop_requested, shown.pause_requested) == (True, False)
    ended = server.status(job_id)
    assert (ended.status, ended.stop_requested) == ("stopped", False)


def test_a_failure_is_the_last_message(server: Server, config: Config) -> None:
    with acting_worker(server) as worker, server.client() as client, open_socket(server, worker.job_id) as socket:
        client.stop(server.train(config(server, "cancelled")))  # from now on, the server reads the log
        worker.end(Ended(state="failed", error="The files of the model are damaged"))
        received, _ = messages(socket)
    assert (received[-1]["type"], received[-1]["error"]) == ("error", "The files of the model are damaged")


def test_a_client_of_a_waiting_job_receives_its_cancellation(server: Server, config: Config) -> None:
    with acting_worker(server), server.client() as client:
        waiting = server.train(config(server, "behind"))
        with open_socket(server, waiting) as socket:
            assert json.loads(socket.recv(timeout=10))["status"] == "queued"
            client.stop(waiting)
            received, code = messages(socket)
    assert (received[-1]["status"], received[-1]["seq"] > 0, code) == ("cancelled", True, 1000)


def test_connections_are_counted_while_they_last(server: Server, watched: Any) -> None:
    with server.client() as client:
        until(lambda: client.stats().websockets.total_connections == 0, 10, "the end of all connections")


def narrow_socket(server: Server, job_id: str) -> ClientConnection:
    """A connection with a small receive buffer, so that the server soon notices that nothing is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    return connect(f"ws://127.0.0.1:{server.port}/ws/{job_id}", sock=connection)


def test_slow_clients_do_not_delay_others_and_miss_no_metrics(new_server: Any, tmp_path: Any) -> None:
    job_id, steps = "job_20250101_000000", 600
    folder = add_running_job(tmp_path, job_id)
    with folder.locked(), ExitStack() as open_sockets, ThreadPoolExecutor(10) as pool:
        server = new_server()
        log = EventLog(folder.events_file)
        never = [open_sockets.enter_context(narrow_socket(server, job_id)) for _ in range(3)]
        late = open_sockets.enter_context(narrow_socket(server, job_id))
        quick = [open_sockets.enter_context(open_socket(server, job_id)) for _ in range(6)]
        read = [pool.submit(messages, connection) for connection in quick]
        many_metrics = {f"metric_{number}": number / 7 for number in range(300)}
        for step in range(1, steps + 1):
            log.append(Metrics(step=step, metrics=many_metrics))
            if step % 30 == 0:
                log.append(Progress(step=step, total_steps=steps))
                until(lambda step=step: server.status(job_id).current_step == step, 20, "the step")
        log.append(Ended(state="completed", output_dir="o", final_metrics={}))
        log.close()
        everyone = [future.result() for future in read]
        everyone.append(messages(late))
        for received, code in everyone:
            found = [message["step"] for message in received if message["type"] == "metrics"]
            assert (found, received[-1]["type"], code) == (list(range(1, steps + 1)), "completed", 1000)
        updates = [sum(message["type"] == "status_update" for message in received) for received, _ in everyone]
        assert updates[-1] < min(updates[:-1])
        for connection in never:
            connection.socket.close()
