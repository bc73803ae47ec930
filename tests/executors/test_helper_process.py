from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from merlina.errors import BusyError, DataError, HelperError, MerlinaError, ModelError
from merlina.executors.helper_process import HelperPool
from merlina.schemas.operations import CountRows, MeasureMatrixSpeed, PreviewFormatted
from tests.harness import pairs_file, until

pytestmark = pytest.mark.slow


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[HelperPool]:
    helper = HelperPool(60, tmp_path / "helper.log")
    yield helper
    helper.close()


def preview(helper: HelperPool, folder: Path, **changes: Any) -> Any:
    file = pairs_file(folder / "pairs.jsonl")
    config = {
        "source": {"source_type": "local_file", "file_path": str(file)},
        "format": {"format_type": "tokenizer"},
        **changes,
    }  # fmt: skip
    limits = {"limit": 2, "max_length": 512, "max_prompt_length": 256, "max_row_mb": 16}
    operation = PreviewFormatted(config=config, file=file, token=None, trust_remote_code=False, **limits)
    return helper.call(operation)


def count(helper: HelperPool, folder: Path) -> int:
    """Make a call that needs neither torch nor transformers, whose imports take most of a test's time."""
    return helper.call(CountRows(file=pairs_file(folder / "pairs.jsonl"), file_format=None, max_row_mb=16))


def test_errors_keep_their_class_and_the_process_continues(
    helper: HelperPool, tmp_path: Path, tiny_model: Path
) -> None:
    with pytest.raises(DataError, match="model_name is required"):
        preview(helper, tmp_path)
    first = helper.pid
    with pytest.raises(ModelError, match="/nowhere"):
        preview(helper, tmp_path, model_name="/nowhere")
    assert preview(helper, tmp_path, model_name=str(tiny_model)).samples[0]["chosen"].endswith("<|im_end|>")
    assert helper.pid == first


def test_a_death_is_an_error_and_the_next_call_starts_another_process(helper: HelperPool, tmp_path: Path) -> None:
    count(helper, tmp_path)
    first = helper.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
    with pytest.raises(HelperError, match="died"):
        count(helper, tmp_path)
    assert count(helper, tmp_path) == 40
    assert helper.pid != first


def test_a_call_that_takes_too_long_ends_the_helper(helper: HelperPool, tmp_path: Path) -> None:
    count(helper, tmp_path)
    pid = helper.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(HelperError, match="took too long"):
        helper.call(MeasureMatrixSpeed(dtype="float32", width=8), timeout=0.2)
    assert helper.pid is None


def test_calls_beyond_the_limit_are_refused_at_once(helper: HelperPool, tmp_path: Path) -> None:
    count(helper, tmp_path)
    pid = helper.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    outcomes: list[int | type[BaseException]] = []

    def call() -> None:
        try:
            outcomes.append(count(helper, tmp_path))
        except MerlinaError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    until(lambda: outcomes.count(BusyError) == 4, 10, "four of twenty calls to be refused")
    os.kill(pid, signal.SIGCONT)
    for thread in threads:
        thread.join(60)
    assert outcomes.count(40) == 16


def test_an_idle_process_is_ended(tmp_path: Path) -> None:
    helper = HelperPool(0.1, tmp_path / "helper.log")
    count(helper, tmp_path)
    until(lambda: helper.pid is None, 10, "the helper's end")


def test_closing_does_not_wait_for_a_running_call(helper: HelperPool, tmp_path: Path) -> None:
    count(helper, tmp_path)
    assert helper.pid is not None
    os.kill(helper.pid, signal.SIGSTOP)
    threading.Timer(0.3, helper.close).start()
    began = time.monotonic()
    with pytest.raises(BusyError, match="shutting down"):
        count(helper, tmp_path)
    assert time.monotonic() - began < 10
    assert helper.pid is None


def test_a_waiting_or_running_call_ends_when_its_client_disconnects(helper: HelperPool, tmp_path: Path) -> None:
    count(helper, tmp_path)
    pid = helper.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    running, waiting = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def call(closed: threading.Event) -> None:
        with pytest.raises(BusyError, match="Client disconnected"):
            helper.call(MeasureMatrixSpeed(dtype="float32", width=8), closed=closed)
        outcomes.append("running" if closed is running else "waiting")

    threads = [threading.Thread(target=call, args=(closed,)) for closed in (running, waiting)]
    threads[0].start()
    until(lambda: helper.pid == pid and helper._busy, 10, "the first call")
    threads[1].start()
    waiting.set()
    threads[1].join(10)
    assert outcomes == ["waiting"]
    running.set()
    threads[0].join(10)
    assert outcomes == ["waiting", "running"]
    assert helper.pid is None
