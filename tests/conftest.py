"""What tests share: one tiny model, one small data set, one server for all that don't kill theirs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from merlina.executors.fork_server import ForkServer, child_environment
from tests.chat.trained import Trained
from tests.harness import Server, pairs_file, training_config
from tests.tiny import build_tiny_model

# Tiny models are quicker on one thread, and their figures the same each time.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# As in the product's own processes: nothing here is compiled, and to be able to would take seconds of each import.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# The tests' own servers are on this machine, which no proxy reaches.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


# How long an example takes says nothing here: other tests' runs share the two cores.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


# A file is tested by one process: those that take longest come first, so that none is left over at the end.
_LONGEST = (
    "browser/test_page", "data/test_hub", "system/test_fault_points", "system/test_recovery", "docs/test_examples",
    "worker/test_multi_gpu", "worker/test_worker", "worker/test_merging", "training/test_sharding", "system/test_hub",
    "api/test_jobs", "executors/test_fork_server", "cli/", "system/", "chat/", "api/test_security",
    "api/test_contract", "worker/", "jobs/test_requests", "browser/", "executors/", "api/test_fuzz",
    "training/test_loop", "api/test_limits", "api/", "client/", "schemas/test_types", "test_packages",
)  # fmt: skip


# What `--fast` leaves out: tests that start a server or another process, or train a model.
_SLOW_FIXTURES = {
    "server", "new_server", "trained", "tiny_model", "fork_server", "locked", "http", "described", "below_a_path",
    "with_gpus",
}  # fmt: skip
_SLOW_FOLDERS = (
    "browser", "cli", "docs/test_examples", "executors", "jobs/test_requests", "system", "training",
    "worker", "api/test_server", "data/test_hub", "schemas/test_types", "test_packages", "preflight/test_gpu_memory",
    "api/test_folders.py::test_a_database",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that need no server, no process and no model")
    parser.addoption("--long", action="store_true", help="also the tests marked long, which take half an hour")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--fast`, what is left out anyway is not even imported: torch alone takes seconds."""
    return True if config.getoption("--fast") and _is_in_slow_folder(collection_path.as_posix()) else None


def pytest_collection(session: pytest.Session) -> None:
    """The imports of the test files make no garbage, but looking for it would take a sixth of their time."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        _deselect(config, items, lambda item: item.get_closest_marker("long") is not None)
    if config.getoption("--fast"):
        _deselect(config, items, _is_slow)

    def place(item: pytest.Item) -> int:
        ranks = (rank for rank, part in enumerate(_LONGEST) if f"tests/{part}" in item.nodeid)
        return next(ranks, len(_LONGEST))

    items.sort(key=place)


def _deselect(config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[pytest.Item], bool]) -> None:
    left_out = {item for item in items if unwanted(item)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _is_slow(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return bool(_SLOW_FIXTURES.intersection(fixtures)) or _is_in_slow_folder(item.nodeid)


def _is_in_slow_folder(path: str) -> bool:
    return any(f"tests/{part}" in path for part in _SLOW_FOLDERS)


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
    """A model to chat with; a test that loads it unloads it again."""
    return Trained.on(server, tiny_model, "to-chat-with")


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """What runs, helpers and chat processes are forked from where a test starts them without a server."""
    server = ForkServer(600, tmp_path_factory.mktemp("forks") / "log")
    with open(os.devnull, "r+b") as nothing:
        server.fork("helper", [], child_environment(), [nothing.fileno()] * 3, patience=60).wait()
    yield server
    server.close()


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
