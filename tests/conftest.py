"""What tests share: one tiny model, one small data set, one server for all that don't kill theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.harness import Server, pairs_file, training_config
from tests.talk import Trained
from tests.tiny import build_tiny_model

# Tiny models are quicker on one thread, and their figures the same each time.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


# How long an example takes says nothing here: other tests' runs share the two cores.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the whole session; tests leave its other jobs alone."""
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.stop()
    server.end_workers()


@pytest.fixture(scope="session")
def trained(server: Server, tiny_model: Path) -> Trained:
    """A model to talk with; a test that lets it be loaded lets it go again."""
    return Trained.on(server, tiny_model, "to-talk-with")


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's own, over one data folder."""
    started: list[Server] = []

    def start(**settings: str) -> Server:
        started.append(Server(tmp_path, settings).start())
        return started[-1]

    yield start
    for server in started:
        server.kill()
        server.end_workers()


@pytest.fixture
def config(tiny_model: Path) -> Callable[..., dict[str, Any]]:
    """A quick TrainingConfig for a given server."""

    def build(server: Server, output_name: str, **changes: Any) -> dict[str, Any]:
        dataset = server.root / "pairs.jsonl"
        if not dataset.exists():
            pairs_file(dataset)
        return {**training_config(tiny_model, dataset, output_name), **changes}

    return build
