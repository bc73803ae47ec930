"""Fixtures that tests share, and the selection and order of tests."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.chat.trained import Trained
from tests.harness import Server, pairs_file, training_config
from tests.tiny import build_tiny_model

# Tiny models are faster on one thread, and their results deterministic.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# As in Merlina's processes: nothing is compiled, and torch imports faster without the compiler.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Requests to the tests' own servers must not go through a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


# No deadlines: the duration of an example depends on the other tests that run on the same cores.
settings.register_profile("default", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=25)
settings.load_profile("default")

_MARKED_SLOW = re.compile(r"^pytestmark = .*pytest\.mark\.slow", re.MULTILINE)
_DURATIONS = "merlina/seconds_by_file"
_UNKNOWN_SECONDS = 3600.0
_seconds: Counter[str] = Counter()
_num_frozen = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip tests marked slow or with a fixture that is slow")
    parser.addoption("--long", action="store_true", help="include the exhaustive tests, marked long")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        settings.load_profile("fast")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--fast`, do not even import files that are marked slow: torch alone takes seconds."""
    if not config.getoption("--fast") or collection_path.suffix != ".py":
        return None
    return True if _MARKED_SLOW.search(collection_path.read_text()) else None


def pytest_collection(session: pytest.Session) -> None:
    """Importing the test files creates no garbage; collecting it would take a sixth of the time."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    global _num_frozen
    gc.freeze()
    gc.enable()
    _num_frozen = len(sys.modules)
    if session.config.getoption("--fast") and "torch" in sys.modules:
        raise pytest.UsageError("a test file without `pytestmark = pytest.mark.slow` imports torch")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        _deselect(config, items, lambda item: item.get_closest_marker("long") is not None)
    if config.getoption("--fast"):
        _deselect(config, items, _is_slow)
    known = _recorded_seconds(config)
    # One process runs all tests of a file. Those that took longest in the last run start first.
    items.sort(key=lambda item: -known.get(_file(item.nodeid), _UNKNOWN_SECONDS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Exclude modules that tests have imported from garbage collection, as the worker does.

    Each run in this process collects garbage explicitly, which would take longer than its training.
    """
    global _num_frozen
    if len(sys.modules) > _num_frozen + 200:
        gc.collect()
        gc.freeze()
        _num_frozen = len(sys.modules)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[_file(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Record the duration of each file, which determines the order of the next run."""
    if not hasattr(session.config, "workerinput") and hasattr(session.config, "cache"):
        known = _recorded_seconds(session.config)
        # A run of some of a file's tests does not replace the duration of all.
        session.config.cache.set(
            _DURATIONS, {**known, **{name: max(s, known.get(name, 0)) for name, s in _seconds.items()}}
        )


def _recorded_seconds(config: pytest.Config) -> dict[str, float]:
    return config.cache.get(_DURATIONS, {}) if hasattr(config, "cache") else {}


def _deselect(config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[pytest.Item], bool]) -> None:
    deselected = {item for item in items if unwanted(item)}
    config.hook.pytest_deselected(items=list(deselected))
    items[:] = [item for item in items if item not in deselected]


def _is_slow(item: pytest.Item) -> bool:
    return "slow" in getattr(item, "fixturenames", ()) or item.get_closest_marker("slow") is not None


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.fixture(scope="session")
def slow() -> None:
    """Dependency of every fixture that starts a process or imports torch: `--fast` deselects its tests."""


@pytest.fixture(scope="session")
def tiny_model(slow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def server(slow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the whole session; tests must not touch jobs of other tests."""
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.stop()
    server.end_workers()


@pytest.fixture(scope="session")
def trained(server: Server, tiny_model: Path) -> Trained:
    """A finished job to chat with; a test that loads its model must unload it."""
    return Trained.on(server, tiny_model, "to-chat-with")


@pytest.fixture
def new_server(slow: None, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers for one test, all with the same data folder."""
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
    """Return a function that builds a TrainingConfig for a short run on a server."""

    def build(server: Server, output_name: str, **changes: Any) -> dict[str, Any]:
        dataset = server.root / "pairs.jsonl"
        if not dataset.exists():
            pairs_file(dataset)
        return {**training_config(tiny_model, dataset, output_name), **changes}

    return build
