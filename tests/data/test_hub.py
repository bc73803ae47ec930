"""Hub data sets through the real client, against a loopback server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub import fake_hub

ROWS = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(30)]
REPOS = {"datasets/org/pairs": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()}}

# The client reads its endpoint once, when it is imported: so each look at the Hub is a process of its own.
LOOK = """
import json, sys
from itertools import islice
from merlina.data.hub import read_hub_rows
from merlina.errors import DataError
repo, split, token, count, keep = json.loads(sys.argv[1])
try:
    print(json.dumps(list(islice(read_hub_rows(repo, split, token, keep=keep), count))))
except DataError as error:
    print(json.dumps(error.message))
"""


def look(
    endpoint: str,
    cache: Path,
    repo: str,
    split: str = "train",
    token: str | None = None,
    count: int = 99,
    keep: bool = False,
) -> Any:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-W", "ignore", "-c", LOOK, json.dumps([repo, split, token, count, keep])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rows_come_from_the_hub_in_order(tmp_path: Path) -> None:
    with fake_hub(REPOS) as hub:
        assert look(hub.endpoint, tmp_path, "org/pairs") == ROWS
        assert "Bad split: test. Available splits: ['train']" in look(hub.endpoint, tmp_path, "org/pairs", split="test")
        assert "There is no data set 'org/none'" in look(hub.endpoint, tmp_path, "org/none")


def test_a_private_data_set_needs_its_token(tmp_path: Path) -> None:
    with fake_hub(REPOS, token="hf_right") as hub:
        assert look(hub.endpoint, tmp_path, "org/pairs", token="hf_right", count=2) == ROWS[:2]
        assert "give a hf_token" in look(hub.endpoint, tmp_path, "org/pairs")
        assert "the hf_token given can't see it" in look(hub.endpoint, tmp_path, "org/pairs", token="hf_stranger")
        refused = look(hub.endpoint, tmp_path, "org/pairs", token="hf_wrong")
        assert "doesn't accept the hf_token given" in refused
        assert "hf_wrong" not in refused


def test_what_one_run_kept_of_a_private_data_set_is_not_for_those_without_its_token(tmp_path: Path) -> None:
    with fake_hub(REPOS, token="hf_right") as hub:
        assert look(hub.endpoint, tmp_path, "org/pairs", token="hf_right", keep=True) == ROWS
        assert "give a hf_token" in look(hub.endpoint, tmp_path, "org/pairs", keep=True)
        assert "can't see it" in look(hub.endpoint, tmp_path, "org/pairs", token="hf_stranger")


def test_a_gated_data_set_says_so(tmp_path: Path) -> None:
    with fake_hub(REPOS) as hub:
        hub.gated.add("datasets/org/pairs")
        assert "is gated: accept its terms" in look(hub.endpoint, tmp_path, "org/pairs", token="hf_right")


def test_a_broken_row_is_told_whether_streamed_or_kept(tmp_path: Path) -> None:
    with fake_hub({"datasets/org/broken": {"train.jsonl": b'{"prompt": "Why?"}\n{"prompt": \n'}}) as hub:
        for keep in (False, True):
            assert "'org/broken' can't be read" in look(hub.endpoint, tmp_path, "org/broken", keep=keep)


def test_a_hub_that_cannot_be_reached_is_said_so(tmp_path: Path) -> None:
    assert "can't be reached" in look("http://127.0.0.1:9", tmp_path, "org/pairs")
