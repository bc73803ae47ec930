from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Server

NVML = Path(__file__).parents[1] / "fakes" / "nvml"
FIRST = {
    "index": 0,
    "name": "NVIDIA Test 24",
    "memory_total_mb": 24_000,
    "memory_free_mb": 3_000,
    "memory_used_mb": 21_000,
    "utilization_percent": 55,
    "temperature_c": 61,
    "power_usage_w": 145.2,
    "compute_capability": "8.9",
}


@pytest.fixture(scope="module")
def with_gpus(slow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    server = Server(tmp_path_factory.mktemp("gpus"), {"PYTHONPATH": str(NVML)}).start()
    with server.http() as http:
        yield http
    server.stop()


def test_all_gpus_are_listed_with_their_values(with_gpus: httpx.Client) -> None:
    response = with_gpus.get("/gpu/list").json()
    assert (response["status"], response["count"]) == ("success", 2)
    assert response["gpus"][0] == FIRST
    second = response["gpus"][1]
    assert second["memory_free_mb"] == 40_000
    assert [second[name] for name in ("utilization_percent", "temperature_c", "power_usage_w")] == [None] * 3


def test_one_gpu_by_its_index(with_gpus: httpx.Client) -> None:
    assert with_gpus.get("/gpu/0").json() == {"status": "success", "gpu": FIRST}
    missing = with_gpus.get("/gpu/7")
    assert missing.status_code == 404
    assert missing.json()["detail"] == (
        "There is no GPU with the index 7; this machine has 2 GPUs, with the indices 0 and 1"
    )
    assert with_gpus.get("/gpu/first").status_code == 400


def test_gpus_with_enough_free_memory_and_the_one_with_the_most(with_gpus: httpx.Client) -> None:
    response = with_gpus.get("/gpu/available").json()
    assert (response["available_gpus"], response["count"], response["min_free_memory_mb"]) == ([1], 1, 4000)
    every = with_gpus.get("/gpu/available", params={"min_free_memory_mb": 3000}).json()
    assert every["available_gpus"] == [0, 1]
    assert with_gpus.get("/gpu/available", params={"min_free_memory_mb": 10**6}).json()["available_gpus"] == []
    recommended = with_gpus.get("/gpu/recommended").json()
    assert (recommended["recommended_index"], recommended["gpu"]["index"]) == (1, 1)


def test_their_memory_is_in_the_metrics(with_gpus: httpx.Client) -> None:
    response = with_gpus.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, sample.labels.get("index")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["merlina_gpu_memory_used_bytes", "0"] == 21_000 * 1024**2
    assert samples["merlina_gpu_utilization_ratio", "0"] == 0.55
    assert ("merlina_gpu_utilization_ratio", "1") not in samples
    assert samples["merlina_job_slots", None] == 1


def test_hidden_gpus_are_not_listed(new_server: Callable[..., Server]) -> None:
    server = new_server(PYTHONPATH=str(NVML), CUDA_VISIBLE_DEVICES="1")
    with server.http() as http:
        assert [gpu["index"] for gpu in http.get("/gpu/list").json()["gpus"]] == [1]
        assert http.get("/gpu/0").status_code == 404


def test_without_cuda_lists_are_empty_and_single_gpus_not_found(server: Server) -> None:
    with server.http() as http:
        listed, free = http.get("/gpu/list"), http.get("/gpu/available")
        assert (listed.status_code, listed.json()["status"], listed.json()["gpus"]) == (200, "no_cuda", [])
        assert (free.status_code, free.json()["status"], free.json()["available_gpus"]) == (200, "no_cuda", [])
        for path in ("/gpu/0", "/gpu/recommended"):
            assert http.get(path).status_code == 404
            assert http.get(path).json()["detail"] == "This machine has no CUDA GPU"
