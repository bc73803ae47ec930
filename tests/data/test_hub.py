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

from tests.hub import fake_hub

ROWS = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(30)]
REPOS = {"datasets/org/pairs": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()}}

# The client reads its endpoint once, when it is imported: so each look at the Hub is a process of its own.
LOOK = """
import json, sys
from itertools import islice
from merlina.data.hub import read_hub_rows
from merlina.errors import DataError
def look(repo, split="train", token=None, count=99, keep=False):
    try:
        return list(islice(read_hub_rows(repo, split, token, keep=keep), count))
    except DataError as error:
        return error.message
print(json.dumps([look(**each) for each in json.loads(sys.argv[1])]))
"""


def begin(endpoint: str, cache: Path, *looks: dict[str, Any]) -> subprocess.Popen[str]:
    """A process that takes looks, one after the other."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-W", "ignore", "-c", LOOK, json.dumps(looks)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> list[Any]:
    """What each look found."""
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    found: list[Any] = json.loads(said.splitlines()[-1])
    return found


def look(endpoint: str, cache: Path, *looks: dict[str, Any]) -> list[Any]:
    return end(begin(endpoint, cache, *looks))


@pytest.fixture(scope="module", autouse=True)
def without_a_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """Begun before all else, since the client tries for half a minute."""
    with begin("http://127.0.0.1:9", tmp_path_factory.mktemp("away"), {"repo": "org/pairs"}) as process:
        yield process


def test_rows_come_from_the_hub_in_order(tmp_path: Path) -> None:
    with fake_hub(REPOS) as hub:
        found = look(
            hub.endpoint, tmp_path, {"repo": "org/pairs"}, {"repo": "org/pairs", "split": "test"}, {"repo": "org/none"}
        )
    assert found[0] == ROWS
    assert "Bad split: test. Available splits: ['train']" in found[1]
    assert "There is no data set 'org/none'" in found[2]


def test_a_private_data_set_needs_its_token(tmp_path: Path) -> None:
    tokens = ("hf_right", None, "hf_stranger", "hf_wrong")
    with fake_hub(REPOS, token="hf_right") as hub:
        found = look(hub.endpoint, tmp_path, *({"repo": "org/pairs", "token": token, "count": 2} for token in tokens))
    assert found[0] == ROWS[:2]
    assert "give a hf_token" in found[1]
    assert "the hf_token given can't see it" in found[2]
    assert "doesn't accept the hf_token given" in found[3]
    assert "hf_wrong" not in found[3]


def test_what_one_run_kept_of_a_private_data_set_is_not_for_those_without_its_token(tmp_path: Path) -> None:
    private = {"repo": "org/pairs", "keep": True}
    with fake_hub(REPOS, token="hf_right") as hub:
        assert look(hub.endpoint, tmp_path, {**private, "token": "hf_right"}) == [ROWS]
        # Another process, as another run is.
        without, stranger = look(hub.endpoint, tmp_path, private, {**private, "token": "hf_stranger", "keep": False})
    assert "give a hf_token" in without
    assert "can't see it" in stranger


def test_a_gated_data_set_says_so(tmp_path: Path) -> None:
    with fake_hub(REPOS) as hub:
        hub.gated.add("datasets/org/pairs")
        (found,) = look(hub.endpoint, tmp_path, {"repo": "org/pairs", "token": "hf_right"})
    assert "is gated: accept its terms" in found


def test_a_broken_row_is_told_whether_streamed_or_kept(tmp_path: Path) -> None:
    with fake_hub({"datasets/org/broken": {"train.jsonl": b'{"prompt": "Why?"}\n{"prompt": \n'}}) as hub:
        for found in look(hub.endpoint, tmp_path, *({"repo": "org/broken", "keep": keep} for keep in (False, True))):
            assert "'org/broken' can't be read" in found


def test_a_hub_that_cannot_be_reached_is_said_so(without_a_hub: subprocess.Popen[str]) -> None:
    (found,) = end(without_a_hub)
    assert "can't be reached" in found
