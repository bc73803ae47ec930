"""Every endpoint, status and key that a client may rely on, in one table; and every message of the WebSocket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.harness import Server, add_running_job, pairs_file, training_config

# The values of `status` in responses that clients may rely on.
STATES = {
    "queued", "initializing", "loading_model", "loading_dataset", "training", "saving", "uploading", "completed",
    "paused", "failed", "stopped", "cancelled",
}  # fmt: skip
GPU_KEYS = ("status", "message", "gpus")
STATS_KEYS = ("queued_count", "running_count", "paused_count", "max_concurrent", "available_slots")


@dataclass(frozen=True)
class World:
    """The resources that the table refers to: a completed job, a waiting one, an upload, a comparison."""

    http: httpx.Client
    url: str
    config: dict[str, Any]
    completed: str
    waiting: str
    upload: str
    folder: str
    comparison: str


@dataclass(frozen=True)
class Case:
    """One request and the keys of its response, as dotted paths; `0` is a list's first element."""

    ask: str
    keys: tuple[str, ...]
    status: int = 200
    body: Callable[[World], Any] | None = None
    files: Callable[[World], Any] | None = None
    params: dict[str, Any] = field(default_factory=dict)


def dataset(world: World) -> dict[str, Any]:
    return {"source": {"source_type": "upload", "dataset_id": world.upload}, "format": {"format_type": "chatml"}}


def prompt(world: World) -> dict[str, Any]:
    return {"job_id": world.completed, "messages": [{"role": "user", "content": "Hi"}], "max_new_tokens": 2}


def completion(world: World) -> dict[str, Any]:
    return {"model": world.completed, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


CHAT_KEYS = ("state", "job_id", "with_base", "gpu", "needed_mb", "memory_mb", "idle_until")
COMPARISON_KEYS = ("comparison_id", "job_id", "messages.0.content", "left", "right", "created_at", "better", "tuned")
CHECKS = ("gpu_available", "vram_sufficient", "disk_space_ok", "model_accessible", "dataset_valid")
CASES = [
    Case("GET /api", ("name", "version", "description", "endpoints.POST /train", "endpoints.GET /status/{job_id}")),
    Case("GET /api/docs", ()),
    Case("GET /api/redoc", ()),
    Case("GET /api/openapi.json", ("openapi", "paths")),
    Case("GET /health", ("status",)),
    Case("GET /metrics", ()),
    Case("GET /system", ("memory_total_mb", "memory_available_mb", "disks.0.free_mb", "versions.torch")),
    Case("GET /session", ("login_required", "logged_in")),
    Case("POST /login", ("logged_in",), body=lambda _: {"api_key": "none is set"}),
    Case("POST /logout", ("logged_in",)),
    Case(
        "GET /stats",
        (
            "database.total_jobs",
            "database.total_metrics",
            "database.db_size_mb",
            "websockets.total_connections",
            *(f"queue.{key}" for key in STATS_KEYS),
        ),
    ),
    Case(
        "POST /validate",
        ("valid", "results.errors", "results.warnings", *(f"results.checks.{name}" for name in CHECKS)),
        body=lambda world: world.config,
    ),
    Case("POST /validate", ("detail.message", "detail.errors", "detail.warnings"), 400, body=lambda _: {}),
    Case("POST /train", ("job_id", "status", "message"), body=lambda world: world.config, params={"priority": "low"}),
    Case(
        "POST /train",
        ("detail.message", "detail.errors.0", "detail.warnings"),
        400,
        body=lambda world: {**world.config, "gpu_ids": [9]},
    ),
    Case("POST /train", ("detail.errors.0",), 400, body=lambda world: world.config, params={"priority": "urgent"}),
    Case(
        "GET /status/{completed}",
        (
            "job_id",
            "status",
            "progress",
            "current_step",
            "total_steps",
            "loss",
            "error",
            "wandb_url",
            "queue_position",
            "queue_state",
        ),
    ),
    Case("GET /status/job_none", ("detail",), 404),
    Case("GET /jobs", ("{completed}.status", "{completed}.progress")),
    Case(
        "GET /jobs/history",
        (
            "count",
            "total",
            "jobs.0.job_id",
            "jobs.0.status",
            "jobs.0.progress",
            "jobs.0.created_at",
            "jobs.0.updated_at",
            "jobs.0.output_dir",
            "jobs.0.error",
        ),
        params={"status": "completed", "limit": 5, "offset": 0},
    ),
    Case("GET /jobs/history", ("detail.errors.0",), 400, params={"status": "done"}),
    Case("GET /jobs/history", ("detail.errors.0",), 400, params={"limit": 0}),
    Case(
        "GET /jobs/{completed}/metrics",
        (
            "job_id",
            "count",
            "total",
            "metrics.0.step",
            "metrics.0.loss",
            "metrics.0.eval_loss",
            "metrics.0.learning_rate",
            "metrics.0.timestamp",
        ),
    ),
    Case("GET /jobs/job_none/metrics", ("detail",), 404),
    Case("GET /jobs/{completed}/config", ("base_model", "dataset.source.source_type", "lora_r")),
    Case("GET /jobs/{completed}/logs", ("job_id", "count", "logs.0.message", "logs.0.timestamp", "logs.0.level")),
    Case("GET /jobs/{completed}/loading-code", ("job_id", "output_dir", "code")),
    Case("GET /jobs/job_none/loading-code", ("detail",), 404),
    Case("GET /jobs/{completed}/timeline", ("job_id", "count", "states.0.state", "states.0.since", "states.0.attempt")),
    Case("GET /jobs/job_none/timeline", ("detail",), 404),
    Case("POST /jobs/{completed}/stop", ("status", "message", "job_id")),
    Case("POST /jobs/job_none/stop", ("detail",), 404),
    Case("POST /jobs/{completed}/pause", ("status", "message", "job_id")),
    Case("POST /jobs/job_none/pause", ("detail",), 404),
    Case("POST /jobs/{completed}/resume", ("detail",), 409),
    Case("POST /jobs/{completed}/retry", ("job_id", "status", "message")),
    Case("GET /queue/status", (*(f"stats.{key}" for key in STATS_KEYS), "queued_jobs", "running_jobs")),
    Case("GET /queue/jobs", ("queued", "running")),
    Case("GET /gpu/list", GPU_KEYS),
    Case("GET /gpu/0", ("detail",), 404),
    Case("GET /gpu/available", ("status", "available_gpus", "count", "min_free_memory_mb")),
    Case("GET /gpu/recommended", ("detail",), 404),
    Case("POST /dataset/preview", ("status", "samples.0.prompt", "num_samples", "total_rows"), body=dataset),
    Case("POST /dataset/preview", ("detail.errors.0",), 400, body=lambda _: {"source": {}}),
    Case(
        "POST /dataset/preview-formatted",
        ("status", "samples.0.prompt", "samples.0.chosen", "samples.0.rejected", "samples.0.row", "num_samples"),
        body=dataset,
    ),
    Case("POST /dataset/columns", ("status", "columns.0", "samples.0.chosen", "total_rows"), body=dataset),
    Case(
        "POST /dataset/upload-file",
        ("status", "dataset_id", "filename", "size"),
        files=lambda _: {"file": ("more.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n')},
    ),
    Case("POST /dataset/upload-file", ("detail",), 400, files=lambda _: {"file": ("none.jsonl", b"")}),
    Case("GET /dataset/uploads", ("datasets.0.dataset_id", "datasets.0.filename", "datasets.0.size")),
    Case("DELETE /dataset/uploads/upload_20250101_000000_00000000", ("detail",), 404),
    Case(
        "POST /configs/save",
        ("status", "message", "filepath"),
        body=lambda _: {"name": "kept", "config": {"lora_r": 8}, "description": "d", "tags": ["contract"]},
    ),
    Case("POST /configs/save", ("detail.errors.0",), 400, body=lambda _: {"name": "list", "config": {}}),
    Case(
        "GET /configs/list",
        (
            "status",
            "count",
            "configs.0.name",
            "configs.0.description",
            "configs.0.tags",
            "configs.0.created_at",
            "configs.0.updated_at",
        ),
        params={"tag": "contract"},
    ),
    Case("GET /configs/kept", ("status", "config.lora_r")),
    Case(
        "GET /configs/kept",
        (
            "config.name",
            "config.description",
            "config.tags",
            "config.created_at",
            "config.updated_at",
            "config.config.lora_r",
        ),
        params={"include_metadata": "true"},
    ),
    Case("GET /configs/none", ("detail",), 404),
    Case(
        "POST /configs/export",
        ("status", "message", "filepath"),
        body=lambda world: {"name": "kept", "output_path": f"{world.folder}/kept.json"},
    ),
    Case(
        "POST /configs/export",
        ("detail",),
        404,
        body=lambda world: {"name": "none", "output_path": f"{world.folder}/none.json"},
    ),
    Case(
        "POST /configs/import",
        ("status", "message", "filepath"),
        body=lambda world: {"filepath": f"{world.folder}/kept.json", "name": "imported"},
    ),
    Case("POST /configs/import", ("detail",), 404, body=lambda world: {"filepath": f"{world.folder}/none.json"}),
    Case("DELETE /configs/kept", ("status", "message")),
    Case("DELETE /configs/kept", ("detail",), 404),
    Case(
        "POST /model/preload",
        (
            "status",
            "model_name",
            "vocab_size",
            "model_max_length",
            "has_chat_template",
            "chat_template_preview",
            "pad_token",
            "eos_token",
            "bos_token",
        ),
        body=lambda world: {"model_name": world.config["base_model"]},
    ),
    Case("POST /model/preload", ("detail",), 400, body=lambda _: {"model_name": "no/such"}),
    Case("GET /model/cached", ("cached_models", "count")),
    Case("GET /chat", CHAT_KEYS),
    Case("POST /chat/load", CHAT_KEYS, body=lambda world: {"job_id": world.completed, "force": True}),
    Case("POST /chat/load", ("detail",), 404, body=lambda _: {"job_id": "job_none"}),
    Case("POST /chat/load", ("detail",), 400, body=lambda world: {"job_id": world.waiting}),
    Case("POST /chat/answer", (), body=prompt),
    Case("POST /chat/answer", ("detail.errors.0",), 400, body=lambda world: {**prompt(world), "messages": []}),
    Case("GET /v1/models", ("object", "data.0.id", "data.0.job_id", "data.0.created", "data.0.parent")),
    Case("GET /v1/models/{completed}", ("id", "object", "created", "owned_by", "job_id", "parent")),
    Case("GET /v1/models/none", ("error.message", "error.type", "error.code"), 404),
    Case(
        "POST /v1/chat/completions",
        ("id", "object", "model", "choices.0.message.content", "choices.0.finish_reason", "usage.total_tokens"),
        body=completion,
    ),
    Case(
        "POST /v1/chat/completions",
        ("error.message", "error.type", "error.param"),
        400,
        body=lambda world: {**completion(world), "messages": []},
    ),
    Case("POST /chat/comparisons", COMPARISON_KEYS, body=prompt),
    Case("GET /chat/comparisons", ("detail.errors.0",), 400),
    Case("POST /chat/comparisons/{comparison}/vote", (*COMPARISON_KEYS, "winner"), body=lambda _: {"better": "left"}),
    Case("POST /chat/comparisons/{comparison}/vote", ("detail",), 409, body=lambda _: {"better": "tie"}),
    Case("POST /chat/comparisons/none/vote", ("detail",), 404, body=lambda _: {"better": "tie"}),
    Case(
        "GET /chat/comparisons",
        (
            "job_id",
            "count",
            "total",
            "comparisons.0.left",
            *(f"tally.{key}" for key in ("wins", "losses", "ties", "open", "win_rate")),
            *(f"tally.{key}" for key in ("win_rate_low", "win_rate_high")),
        ),
        params={"job_id": "{completed}"},
    ),
    Case(
        "POST /chat/comparisons/dataset",
        ("status", "dataset_id", "filename", "size", "total_rows"),
        params={"job_id": "{completed}"},
    ),
    Case("POST /chat/comparisons/dataset", ("detail",), 400, params={"job_id": "{waiting}"}),
    Case("DELETE /chat", CHAT_KEYS),
    Case("POST /jobs/{waiting}/stop", ("status", "message", "job_id", "was_queued")),
    Case("DELETE /jobs/{waiting}", ("status", "message", "job_id")),
    Case("DELETE /jobs/{waiting}", ("detail",), 404),
    Case("DELETE /jobs", ("status", "message", "deleted_count")),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Any:
    """One server for the whole table, which is processed from top to bottom."""
    server = Server(tmp_path_factory.mktemp("contract")).start()
    config = training_config(tiny_model, pairs_file(server.root / "pairs.jsonl"), "by_contract", max_steps=2)
    completed = server.train({**config, "logging_steps": 1, "eval_steps": 1})
    assert server.until_ended(completed).status == "completed"
    running = "job_20250101_000000"
    with server.folder(running).locked(), server.http() as http:
        add_running_job(server.root, running)
        waiting = server.train(config)
        file = {"file": ("pairs.jsonl", (server.root / "pairs.jsonl").read_bytes())}
        upload = http.post("/dataset/upload-file", files=file).json()["dataset_id"]
        asked = {"job_id": completed, "messages": [{"role": "user", "content": "Hi"}]}
        answers = {"base": "No.", "tuned": "Yes."}
        comparison = http.post("/chat/comparisons", json={**asked, "answers": answers}).json()["comparison_id"]
        yield World(http, server.url, config, completed, waiting, upload, str(server.root), comparison)
    server.kill()
    server.end_workers()


def test_a_jobs_messages_have_their_keys_and_end_once(world: World) -> None:
    address = f"{world.url.replace('http', 'ws', 1)}/ws"
    with connect(f"{address}/{world.waiting}") as socket:
        assert json.loads(socket.recv())["status"] == "queued"
        socket.send("any text")
        assert json.loads(socket.recv()) == {"type": "heartbeat", "status": "ok"}
    with connect(f"{address}/{world.completed}?after=0") as socket:
        messages = [json.loads(text) for text in socket]
    by_type = {message["type"]: message for message in messages}
    assert set(by_type) >= {"status_update", "metrics", "completed"}
    assert set(by_type["status_update"]) >= {
        "job_id", "status", "progress", "current_step", "total_steps", "loss", "eval_loss", "learning_rate",
        "gpu_memory", "timestamp",
    }  # fmt: skip
    metrics = [message for message in messages if message["type"] == "metrics"]
    assert all({"job_id", "step", "metrics", "timestamp"} <= set(message) for message in metrics)
    names = {name for message in metrics for name in message["metrics"]}
    assert names >= {"loss", "eval_loss", "learning_rate", "grad_norm"}
    last = messages[-1]
    assert last["type"] == "completed"
    assert set(last) >= {"job_id", "output_dir", "final_metrics", "timestamp"}
    assert set(last["final_metrics"]) >= {"final_loss", "final_eval_loss"}
    assert all(isinstance(message["timestamp"], float) for message in messages)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.ask} {case.status}" for case in CASES])
def test_an_endpoint_responds_as_documented(world: World, case: Case) -> None:
    method, path = case.ask.split(" ")
    names = {"completed": world.completed, "waiting": world.waiting, "comparison": world.comparison}
    response = world.http.request(
        method,
        path.format(**names),
        params={name: str(value).format(**names) for name, value in case.params.items()},
        json=case.body(world) if case.body else None,
        files=case.files(world) if case.files else None,
    )
    assert response.status_code == case.status, response.text
    for key in case.keys:
        found: Any = response.json()
        for part in key.split("."):
            part = part.format(**names) if part.startswith("{") and part[1:-1] in names else part
            found = found[int(part)] if isinstance(found, list) else found[part]


def test_the_table_has_every_endpoint(world: World) -> None:
    for endpoint in world.http.get("/api").json()["endpoints"]:
        pattern = re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(endpoint)))
        assert any(pattern.fullmatch(case.ask) for case in CASES), endpoint


def test_states_are_those_that_are_documented(world: World) -> None:
    schema = world.http.get("/api/openapi.json").json()
    assert set(schema["components"]["schemas"]["JobStatus"]["properties"]["status"]["enum"]) == STATES
