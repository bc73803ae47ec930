"""Hub data sets through the real client, against a loopback server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import FakeHub, fake_hub

pytestmark = pytest.mark.slow

ROWS = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(30)]
REPOS = {"datasets/org/pairs": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()}}

# The client reads its endpoint only when it is imported, so another process accesses the Hub.
LOOK = """
import json, sys
from itertools import islice
from merlina.data.readers.hub import read_hub_rows
from merlina.errors import DataError
def look(repo, split="train", token=None, count=99, download=False):
    try:
        return list(islice(read_hub_rows(repo, split, token, download=download), count))
    except DataError as error:
        return error.message
for line in sys.stdin:
    print("found", json.dumps(look(**json.loads(line))), flush=True)
"""


class Looking:
    """A process that reads from one Hub, with one cache."""

    def __init__(self, endpoint: str, cache: Path) -> None:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-W", "ignore", "-c", LOOK]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def begin(self, **how: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(how) + "\n")
        self.process.stdin.flush()

    def found(self) -> Any:
        """Return the result of the read that was started, ignoring other output of the libraries."""
        assert self.process.stdout is not None
        return next(json.loads(line.removeprefix("found ")) for line in self.process.stdout if line[:6] == "found ")

    def look(self, **how: Any) -> Any:
        self.begin(**how)
        return self.found()

    def end(self) -> None:
        self.process.communicate(timeout=120)
        assert self.process.returncode == 0


@pytest.fixture(scope="module", autouse=True)
def without_a_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looking]:
    """Start before the other tests, because the client retries for half a minute."""
    looking = Looking("http://127.0.0.1:9", tmp_path_factory.mktemp("away"))
    looking.begin(repo="org/pairs")
    yield looking
    looking.end()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    """Serve a separate copy of the data set for each test, so that tests do not share cached rows."""
    (files,) = REPOS.values()
    broken = {"train.jsonl": b'{"prompt": "Why?"}\n{"prompt": \n'}
    names = ("pairs", "private", "kept", "gated")
    with fake_hub({**{f"datasets/org/{name}": files for name in names}, "datasets/org/broken": broken}) as hub:
        hub.gated.add("datasets/org/gated")
        yield hub


@pytest.fixture
def private_hub(hub: FakeHub) -> Iterator[FakeHub]:
    hub.token = "hf_right"
    yield hub
    hub.token = None


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def looking(hub: FakeHub, cache: Path) -> Iterator[Looking]:
    looking = Looking(hub.endpoint, cache)
    yield looking
    looking.end()


def test_rows_come_from_the_hub_in_order(looking: Looking) -> None:
    wanted: list[dict[str, Any]] = [{"repo": "org/pairs"}, {"repo": "org/pairs", "split": "test"}, {"repo": "org/none"}]
    found = [looking.look(**each) for each in wanted]
    assert found[0] == ROWS
    assert "Bad split: test. Available splits: ['train']" in found[1]
    assert "There is no data set 'org/none'" in found[2]


@pytest.mark.usefixtures("private_hub")
def test_a_private_data_set_needs_its_token(looking: Looking) -> None:
    tokens = ("hf_right", None, "hf_stranger", "hf_wrong")
    found = [looking.look(repo="org/private", token=token, count=2) for token in tokens]
    assert found[0] == ROWS[:2]
    assert "set hf_token" in found[1]
    assert "the given hf_token has no access to it" in found[2]
    assert "rejected the given hf_token" in found[3]
    assert "hf_wrong" not in found[3]


def test_a_cached_private_data_set_is_not_readable_without_its_token(
    private_hub: FakeHub, looking: Looking, cache: Path
) -> None:
    private = {"repo": "org/kept", "download": True}
    assert looking.look(**private, token="hf_right") == ROWS
    # Another process, as another run is.
    other = Looking(private_hub.endpoint, cache)
    without, stranger = other.look(**private), other.look(repo="org/kept", token="hf_stranger")
    other.end()
    assert "set hf_token" in without
    assert "has no access to it" in stranger


def test_a_gated_data_set_is_reported_as_gated(looking: Looking) -> None:
    assert "is gated: accept its terms" in looking.look(repo="org/gated", token="hf_right")


@pytest.mark.parametrize("download", [False, True])
def test_a_damaged_row_is_reported_whether_streamed_or_downloaded(looking: Looking, download: bool) -> None:
    assert "'org/broken' cannot be read" in looking.look(repo="org/broken", download=download)


def test_an_unreachable_hub_is_reported(without_a_hub: Looking) -> None:
    assert "cannot be reached" in without_a_hub.found()
