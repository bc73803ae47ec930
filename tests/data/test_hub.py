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

from tests.hub import COMMIT, FakeHub, commit_of, fake_hub

pytestmark = pytest.mark.slow

ROWS = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(30)]
REPOS = {"datasets/org/pairs": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()}}
FRENCH = b'{"prompt": "Pourquoi ?", "chosen": "Parce que.", "rejected": "Non."}\n'
CARD = b"""---
configs:
- config_name: english
  data_files: english/*.jsonl
- config_name: french
  data_files: [{split: test, path: french/test.jsonl}]
---
"""

# The client reads its endpoint only when it is imported, so another process accesses the Hub.
LOOK = """
import json, sys
from itertools import islice
from merlina.data.readers.hub import read_hub_rows
from merlina.errors import DataError
from merlina.schemas.datasets.sources import DatasetSource
def look(repo_id, token=None, count=99, download=False, **fields):
    source = DatasetSource(source_type="huggingface", repo_id=repo_id, **fields)
    try:
        return list(islice(read_hub_rows(source, token, download=download), count))
    except DataError as error:
        return error.message
for line in sys.stdin:
    print("found", json.dumps(look(**json.loads(line))), flush=True)
"""


class Looking:
    """A process that reads from one Hub, with one cache."""

    def __init__(self, endpoint: str, cache: Path, *, offline: bool = False) -> None:
        access = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
        environment = {**os.environ, **access}
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
    looking.begin(repo_id="org/pairs")
    yield looking
    looking.end()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    """Serve a separate copy of the data set for each test, so that tests do not share cached rows."""
    (files,) = REPOS.values()
    broken = {"train.jsonl": b'{"prompt": "Why?"}\n{"prompt": \n'}
    names = ("pairs", "private", "kept", "gated")
    several = {"README.md": CARD, "english/a.jsonl": files["train.jsonl"], "french/test.jsonl": FRENCH}
    others = {"datasets/org/broken": broken, "datasets/org/several": several}
    with fake_hub({**{f"datasets/org/{name}": files for name in names}, **others}) as hub:
        hub.gated.add("datasets/org/gated")
        hub.revisions["v1"] = {"datasets/org/pairs": {"train.jsonl": FRENCH}}
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
    found = [
        looking.look(repo_id="org/pairs"),
        *(looking.look(repo_id="org/pairs", split="test", download=each) for each in (False, True)),
        looking.look(repo_id="org/none"),
    ]
    assert found[0] == ROWS
    assert found[1] == found[2] == "The data set 'org/pairs' has no split 'test'; set source.split to train"
    assert "There is no data set 'org/none'" in found[3]


@pytest.mark.usefixtures("private_hub")
def test_a_private_data_set_needs_its_token(looking: Looking) -> None:
    tokens = ("hf_right", None, "hf_stranger", "hf_wrong")
    found = [looking.look(repo_id="org/private", token=token, count=2) for token in tokens]
    assert found[0] == ROWS[:2]
    assert "set hf_token" in found[1]
    assert "the given hf_token has no access to it" in found[2]
    assert "rejected the given hf_token" in found[3]
    assert "hf_wrong" not in found[3]


def test_a_cached_private_data_set_is_not_readable_without_its_token(
    private_hub: FakeHub, looking: Looking, cache: Path
) -> None:
    private = {"repo_id": "org/kept", "download": True}
    assert looking.look(**private, token="hf_right") == ROWS
    # Another process, as another run is.
    other = Looking(private_hub.endpoint, cache)
    without, stranger = other.look(**private), other.look(repo_id="org/kept", token="hf_stranger")
    other.end()
    assert "set hf_token" in without
    assert "has no access to it" in stranger


def test_a_gated_data_set_is_reported_as_gated(looking: Looking) -> None:
    assert "is gated: accept its terms" in looking.look(repo_id="org/gated", token="hf_right")


@pytest.mark.parametrize("download", [False, True])
def test_a_data_set_with_several_configurations_needs_the_name_of_one(looking: Looking, download: bool) -> None:
    def look(**fields: Any) -> Any:
        return looking.look(repo_id="org/several", download=download, **fields)

    french = [json.loads(FRENCH)]
    choice = "set source.config_name to one of: english, french"
    assert look() == f"The data set 'org/several' has several configurations; {choice}"
    assert look(config_name="german") == f"The data set 'org/several' has no configuration 'german'; {choice}"
    assert look(config_name="english") == ROWS
    assert look(config_name="french", split="test") == french
    problem = look(config_name="french")
    assert problem == "The data set 'org/several' has no split 'train'; set source.split to test"
    # Files that the user names need no configuration.
    assert look(data_files="french/*.jsonl") == french
    assert look(data_files=["french/test.jsonl", "english/a.jsonl"]) == [*french, *ROWS]
    problem = "The data set 'org/several' has no files that match source.data_files 'german/*.jsonl', or the Hub cannot"
    assert look(data_files="german/*.jsonl").startswith(problem)


@pytest.mark.parametrize("download", [False, True])
def test_a_revision_is_read(looking: Looking, download: bool) -> None:
    def look(**fields: Any) -> Any:
        return looking.look(repo_id="org/pairs", download=download, **fields)

    french = [json.loads(FRENCH)]
    assert look(revision="v1") == look(revision=commit_of("v1")) == french
    assert look(revision="main") == look() == ROWS
    missing = "The data set 'org/pairs' has no revision 'v2'; use a branch, a tag or a commit id"
    assert look(revision="v2") == missing


def test_a_cached_copy_of_another_revision_is_not_read_instead(hub: FakeHub, tmp_path: Path) -> None:
    online = Looking(hub.endpoint, tmp_path)
    assert len(online.look(repo_id="org/pairs", revision="v1", download=True)) == 1
    online.end()
    offline = Looking(hub.endpoint, tmp_path, offline=True)
    found = [offline.look(repo_id="org/pairs", revision=each) for each in (commit_of("v1"), None, "v1", COMMIT)]
    offline.end()
    assert found[0] == found[1] == [json.loads(FRENCH)]
    assert f"newest copy in this machine's cache is of commit {commit_of('v1')}" in found[2]
    assert f"revision '{COMMIT}'" in found[3]


@pytest.mark.parametrize("download", [False, True])
def test_a_damaged_row_is_reported_whether_streamed_or_downloaded(looking: Looking, download: bool) -> None:
    assert "'org/broken' cannot be read" in looking.look(repo_id="org/broken", download=download)


def test_an_unreachable_hub_is_reported(without_a_hub: Looking) -> None:
    assert "cannot be reached" in without_a_hub.found()
