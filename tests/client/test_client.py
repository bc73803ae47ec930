from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import merlina
from merlina.client import AsyncClient, Client
from merlina.errors import (
    ForbiddenError,
    InvalidRequestError,
    MerlinaError,
    NotFoundError,
    ServerError,
    TooManyAttemptsError,
    UnauthorizedError,
)
from merlina.run_folder.event_log import EventLog
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.events import Ended, Metrics
from merlina.schemas.messages import JobMessage, MetricsMessage
from merlina.schemas.training.config import TrainingConfig
from tests.harness import Server, add_running_job, pairs_file, until

Config = Callable[..., dict[str, Any]]


def test_the_package_offers_both_clients() -> None:
    assert (merlina.Client, merlina.AsyncClient) == (Client, AsyncClient)
    with pytest.raises(AttributeError):
        _ = merlina.Clint  # type: ignore[attr-defined]


def test_the_asynchronous_one_has_every_method_of_the_other() -> None:
    methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    assert methods == {name for name, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if name[0] != "_"}


def test_every_endpoint_has_a_method(server: Server) -> None:
    source = inspect.getsource(Client)
    with server.client() as client:
        endpoints = client.info().endpoints
    for endpoint in endpoints:
        path = endpoint.split(" ")[1]
        # For pages, for Prometheus, for readers of the documentation, and for OpenAI's clients.
        if path not in ("/login", "/logout", "/session", "/metrics") and not path.startswith(("/api/", "/v1/")):
            fixed = [part for part in path.split("/") if part and not part.startswith("{")]
            assert all(part in source for part in fixed), endpoint


def test_a_run_from_upload_to_its_end_with_progress(server: Server, config: Config, tmp_path: Path) -> None:
    seen: list[str] = []
    with server.client() as client:
        upload = client.upload(pairs_file(tmp_path / "pairs.jsonl"))
        source = {"source_type": "upload", "dataset_id": upload.dataset_id}
        dataset = DatasetConfig.model_validate({"source": source})
        assert client.columns(dataset).total_rows == upload.total_rows == 40
        assert client.preview(dataset).num_samples == 10
        body = config(server, "by_client", max_steps=3)
        training = TrainingConfig.model_validate({**body, "dataset": {"source": source}})
        shown = client.preview_formatted(dataset.model_copy(update={"model_name": body["base_model"]}), 40, 16)
        assert shown.samples[0]["cut"]["prompt"] == 7
        assert client.validate(training).valid
        created = client.train(training, "high")
        ended = client.wait(created.job_id, on_message=lambda message: seen.append(message.type))
        assert (ended.status, ended.current_step) == ("completed", 3)
        assert seen[0] == "status_update"
        assert seen.count("metrics") >= 3
        assert seen[-1] == "completed"
        assert client.delete(created.job_id).status == "success"
        with pytest.raises(NotFoundError, match="Job not found"):
            client.status(created.job_id)


def test_configurations_are_saved_and_come_back(server: Server, tmp_path: Path) -> None:
    with server.client() as client:
        client.save_config("by-client", {"lora_r": 8}, "small", ["client"])
        saved = client.saved_config("by-client")
        assert (saved.config, saved.description, saved.tags) == ({"lora_r": 8}, "small", ["client"])
        assert [entry.name for entry in client.saved_configs("client").configs] == ["by-client"]
        target = server.root / "by-client.json"
        client.export_config("by-client", str(target))
        client.import_config(str(target), "again")
        assert client.saved_config("again").config == {"lora_r": 8}
        client.delete_config("again")
        with pytest.raises(InvalidRequestError) as caught:
            client.save_config("no name", {})
        assert caught.value.errors[0].startswith("name: ")


def test_the_asynchronous_client_can_be_awaited(server: Server, config: Config) -> None:
    async def work() -> list[str]:
        async with AsyncClient(server.url) as client:
            body = TrainingConfig.model_validate(config(server, "awaited", max_steps=2))
            job, gpus, stats = await asyncio.gather(client.train(body), client.gpus(), client.stats())
            assert (gpus.status, stats.queue.max_concurrent) == ("no_cuda", 1)
            seen: list[str] = []
            ended = await client.wait(job.job_id, on_message=lambda message: seen.append(message.type))
            assert ended.status == "completed"
            with pytest.raises(NotFoundError):
                async for _ in client.watch("job_none"):
                    pass
            return seen

    assert asyncio.run(work())[-1] == "completed"


def test_get_requests_are_repeated_and_others_are_not() -> None:
    asked: list[str] = []

    class Unsteady(BaseHTTPRequestHandler):
        """Closes the connection on two of three requests."""

        def do_GET(self) -> None:
            asked.append(self.command)
            if len(asked) % 3 == 0:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

        do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Unsteady) as unsteady:
        Thread(target=unsteady.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{unsteady.server_port}", retries=2) as client:
            assert client.jobs() == {}
            assert asked == ["GET"] * 3
            with pytest.raises(ServerError, match="No Merlina server responds"):
                client.clear()
            assert asked == ["GET"] * 3 + ["DELETE"]
        unsteady.shutdown()


def test_missing_and_wrong_keys_are_errors_at_once(
    new_server: Callable[..., Server],
) -> None:
    server = new_server(API_KEY="k")
    with Client(server.url) as client, pytest.raises(UnauthorizedError):
        client.jobs()
    with Client(server.url, "k") as client:
        assert client.jobs() == {}
    began = time.monotonic()
    with Client(server.url, api_key="wrong") as client, pytest.raises((UnauthorizedError, ForbiddenError)):
        client.wait("job_20250101_000000")
    with Client(server.url, api_key="wrong") as client:
        for _ in range(10):
            with contextlib.suppress(MerlinaError):
                client.jobs()
        with pytest.raises(TooManyAttemptsError) as too_many:
            client.wait("job_20250101_000000")
    assert too_many.value.message.startswith("Too many wrong API keys; try again in ")
    with Client(server.url, "k") as client, pytest.raises(InvalidRequestError, match="after: must be the number"):
        list(client.watch("job_20250101_000000", after=-1))
    assert time.monotonic() - began < 10


def test_watching_continues_over_a_restart_without_a_gap(new_server: Callable[..., Server], tmp_path: Path) -> None:
    job_id = "job_20250101_000000"
    folder = add_running_job(tmp_path, job_id)

    def append_steps(log: EventLog, steps: range) -> None:
        for step in steps:
            log.append(Metrics(step=step, metrics={"loss": 0.5}))

    async def watch(server: Server, log: EventLog) -> list[JobMessage]:
        async with AsyncClient(server.url) as client:
            messages = []
            async for message in client.watch(job_id, after=0):
                messages.append(message)
                if isinstance(message, MetricsMessage) and message.step == 5:
                    server.kill()
                    append_steps(log, range(21, 31))
                    await asyncio.to_thread(server.start)
                    append_steps(log, range(31, 41))
                    log.append(Ended(state="completed", output_dir="o", final_metrics={}))
            return messages

    with folder.locked():
        server = new_server()
        log = EventLog(folder.events_file)
        append_steps(log, range(1, 21))
        messages = asyncio.run(watch(server, log))
        log.close()
        until(lambda: server.status(job_id).status == "completed")
    steps = [one.step for one in messages if isinstance(one, MetricsMessage) and "loss" in one.metrics]
    assert steps == list(range(1, 41))
    assert messages[-1].type == "completed"


@pytest.mark.parametrize(("url", "key"), [("127.0.0.1:8000", None), ("http://127.0.0.1:8000", "schlüssel")])
def test_an_address_or_key_that_no_request_can_carry_is_refused(url: str, key: str | None) -> None:
    with pytest.raises(InvalidRequestError):
        Client(url, api_key=key)


def test_a_foreign_server_is_reported(tmp_path: Path) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path != "/health" else 400)
            self.end_headers()
            self.wfile.write(b'{"detail": {"foreign": 1}}' if self.path == "/health" else b"<html>")

        def log_message(self, *_: object) -> None: ...

    other = HTTPServer(("127.0.0.1", 0), Other)
    Thread(target=other.serve_forever, daemon=True).start()
    with Client(f"http://127.0.0.1:{other.server_port}") as client:
        for ask in (client.jobs, lambda: client.config("x"), client.info):
            with pytest.raises(ServerError, match="Merlina server"):
                ask()
        with pytest.raises(InvalidRequestError, match="foreign"):
            client.health()
        with pytest.raises(NotFoundError, match="nope"):
            client.upload(tmp_path / "nope.jsonl")
    other.shutdown()
    other.server_close()
