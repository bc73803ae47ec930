"""Token ids of a large data set are the same from the file of another process, and are never used after a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merlina.run_folder.folder import RunFolder, remove_token_cache
from merlina.schemas.inspection import FileStamp, Fingerprint
from merlina.schemas.training.config import TrainingConfig
from merlina.training.models.token_store import TokenStore
from merlina.training.models.tokens import TokenPair
from merlina.worker.run.token_cache import EncodedRows, TokenCache
from tests.harness import training_config
from tests.tiny import build_tiny_tokenizer

pytestmark = pytest.mark.slow

STAMP = FileStamp(size=10, mtime_ns=20, inode=30)
ROWS = EncodedRows(
    training=18, evaluation={"news": (18, 19)}, fingerprint=Fingerprint(rows=18, held_out=2, blocks=("a",), file=STAMP)
)
MILLION = list(range(1_000_000))
PAIRS = [
    *(TokenPair([number, *MILLION], [number], [], number) for number in range(17)),
    TokenPair([1, 2], [3], [4, 5], 17),
    TokenPair([6], [7, 8], [9], 1),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def cache(tmp_path: Path, tokenizer: Any) -> TokenCache:
    config = TrainingConfig.model_validate(training_config(tmp_path, tmp_path / "pairs.jsonl", "out"))
    return TokenCache(tmp_path / "tokens", config, tokenizer, 1_000_000)


def filled(store: TokenStore) -> TokenStore:
    for pair in PAIRS:
        store.add(pair)
    return store


def assert_has_all_pairs(store: TokenStore) -> None:
    assert list(store.select(np.arange(len(PAIRS)))) == PAIRS
    assert store.rows.tolist() == [pair.row for pair in PAIRS]


def test_ids_in_a_file_are_those_that_were_added(cache: TokenCache, tmp_path: Path) -> None:
    store = filled(cache.new_store())
    cache.write(store, ROWS)
    assert_has_all_pairs(store)

    found = cache.reopen(ROWS.fingerprint)
    assert isinstance(found, tuple), found
    assert_has_all_pairs(found[0])
    assert found[1] == ROWS

    in_use = found[0].select(np.arange(len(PAIRS)))
    remove_token_cache(RunFolder(tmp_path))
    assert not cache.folder.exists()
    assert list(in_use) == PAIRS


def test_few_ids_leave_no_file(cache: TokenCache) -> None:
    store = cache.new_store()
    store.add(PAIRS[-1])
    cache.write(store, ROWS)
    assert list(store.select(np.arange(1))) == [PAIRS[-1]]
    assert not cache.folder.exists()
    assert cache.reopen(ROWS.fingerprint) is None


def test_ids_are_not_used_after_any_change(cache: TokenCache, tokenizer: Any, tmp_path: Path) -> None:
    cache.write(filled(cache.new_store()), ROWS)

    edited = ROWS.fingerprint.model_copy(update={"file": STAMP.model_copy(update={"mtime_ns": 21})})
    assert cache.reopen(edited) == "a file of the data set has changed"
    additional = ROWS.fingerprint.model_copy(update={"files": {"eval_source": STAMP}})
    assert cache.reopen(additional) == "a file of the data set has changed"

    others = training_config(tmp_path, tmp_path / "pairs.jsonl", "out", max_length=96)
    config = TrainingConfig.model_validate(others)
    software = "the configuration, the model or the software has changed"
    other_rules = ROWS.fingerprint.model_copy(update={"conversion_rules": ROWS.fingerprint.conversion_rules + 1})
    assert cache.reopen(other_rules) == software
    assert TokenCache(cache.folder, config, tokenizer, 1_000_000).reopen(ROWS.fingerprint) == software
    assert TokenCache(cache.folder, cache.config, tokenizer, 999_999).reopen(ROWS.fingerprint) == software

    for name in ("ids", "ends.npy", "rows.npy"):
        file = cache.folder / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert cache.reopen(ROWS.fingerprint) == f"{name} is damaged"
        file.write_bytes(content)
    assert isinstance(cache.reopen(ROWS.fingerprint), tuple)

    # An attempt that encodes again makes the folder invalid before it writes.
    cache.new_store()
    assert cache.reopen(ROWS.fingerprint) is None
