"""Prometheus metrics of the server and its runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from merlina.api.services import Services
from merlina.domain.job_states import JobState
from merlina.domain.units import MIB
from merlina.hardware.gpus import list_gpus
from merlina.storage import jobs


def render(services: Services) -> bytes:
    """Return all metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Collector(services))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        services = self._services
        with services.database.read() as connection:
            by_state, running = jobs.counts_by_state(connection), jobs.running(connection)
        yield _gauge(
            "merlina_jobs",
            "Jobs by state",
            ["state"],
            {(state,): by_state.get(state, 0) for state in get_args(JobState)},
        )
        yield _gauge(
            "merlina_job_slots", "Maximum number of concurrent jobs", [], {(): services.settings.max_concurrent_jobs}
        )
        yield _gauge("merlina_websockets", "Open WebSocket connections", [], {(): services.websockets})
        uptime = time.monotonic() - services.started_at
        yield _gauge("merlina_uptime_seconds", "Seconds since the server started", [], {(): uptime})
        yield _gauge(
            "merlina_database_bytes", "Size of the database in bytes", [], {(): services.database.size_bytes()}
        )
        progress = {(job.job_id,): job.progress for job in running}
        yield _gauge(
            "merlina_job_progress_ratio", "Completed fraction of a running job's optimizer steps", ["job_id"], progress
        )
        losses = {(job.job_id,): job.loss for job in running if job.loss is not None}
        yield _gauge("merlina_job_loss", "Latest loss of a running job", ["job_id"], losses)
        yield from _gpu_metrics()


def _gpu_metrics() -> Iterator[Metric]:
    gpus = list_gpus()
    used = {(str(gpu.index), gpu.name): gpu.memory_used_mb * MIB for gpu in gpus}
    total = {(str(gpu.index), gpu.name): gpu.memory_total_mb * MIB for gpu in gpus}
    busy = {
        (str(gpu.index), gpu.name): gpu.utilization_percent / 100 for gpu in gpus if gpu.utilization_percent is not None
    }
    labels = ["index", "name"]
    yield _gauge("merlina_gpu_memory_used_bytes", "GPU memory in use", labels, used)
    yield _gauge("merlina_gpu_memory_total_bytes", "Total GPU memory", labels, total)
    yield _gauge("merlina_gpu_utilization_ratio", "Fraction of time the GPU was busy", labels, busy)


def _gauge(name: str, help_text: str, labels: list[str], values: Mapping[Any, float]) -> GaugeMetricFamily:
    """Return a metric family. The keys of `values` are tuples of label values."""
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(list(label_values), value)
    return family
