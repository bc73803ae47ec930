from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from merlina.run_folder.event_log import EventLog, find_events, in_order, read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.events import Ended, Logged, Metrics, Moved, Progress, Started, parse_event
from merlina.schemas.training.config import TrainingConfig


def test_event_numbers_continue_over_attempts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for attempt in (1, 2):
        log = EventLog(path)
        log.append(Started(attempt=attempt, pid=1))
        log.append(Progress(step=1, total_steps=2))
        log.close()
    events, offset = read_events(path)
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert offset == path.stat().st_size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(1, 200))
def test_an_incomplete_line_is_not_read_and_removed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    log = EventLog(path)
    for step in range(5):
        log.append(Progress(step=step, total_steps=5))
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    left, offset = read_events(path)
    log = EventLog(path)
    assert path.stat().st_size == offset
    assert log.append(Progress(step=9, total_steps=9)) == len(left) + 1
    log.close()
    assert [event.seq for event in read_events(path)[0]] == list(range(1, len(left) + 2))


def test_reading_continues_where_it_stopped_and_reads_long_lines_completely(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for length in (10, 5000, 10, 100_000, 10):
        log.append(Logged(level="info", message="x" * length))
    log.close()
    offset, lengths = 0, []
    while True:
        events, offset = read_events(path, offset, limit_bytes=1000)
        if not events:
            break
        lengths += [len(event.message) for event in events]
    assert lengths == [10, 5000, 10, 100_000, 10]


def test_neither_nan_nor_unknown_events_are_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(Metrics(step=1, metrics={"loss": float("nan"), "grad_norm": float("inf")}))
    with pytest.raises(ValidationError):
        log.append(Metrics(step="one", metrics={}))
    log.close()
    assert parse_event(b'{"type": "progress", "step": 1, "total_steps": 2}') is None  # no number
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["metrics"] == {"loss": None, "grad_norm": None}


def test_only_its_owner_can_read_a_secret(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_secrets({"hf_token": "hf_x"})
    assert stat.S_IMODE(os.stat(folder.secrets_file).st_mode) == 0o600
    assert folder.read_secrets() == {"hf_token": "hf_x"}
    assert RunFolder(tmp_path / "none").read_secrets() == {}


def test_a_lock_is_held_until_the_process_it_was_passed_to_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.locked() as lock:
        assert lock is not None
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with folder.locked() as lock:
        assert lock is None
    holder.kill()
    holder.wait()
    with folder.locked() as lock:
        assert lock is not None
    assert holder.stdin is not None
    holder.stdin.close()


def test_events_of_another_version_are_numbered_and_invalid_lines_skipped(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(Progress(step=1, total_steps=3))
    log.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"seq": 2, "time": 1.0, "type": "from_tomorrow", "more": [1]}\nnot json\n')
        file.write('{"seq": 3, "time": 1.0, "type": "progress", "step": 2, "total_steps": 3}\n')
    events, _ = read_events(tmp_path / "events.jsonl")
    assert [(event.seq, event.type) for event in events] == [(1, "progress"), (2, "from_tomorrow"), (3, "progress")]


def test_complete_lines_of_one_type_are_found(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert list(find_events(file, Logged)) == []
    log = EventLog(file)
    for step in range(20_000):
        log.append(Metrics(step=step, metrics={"loss": 1.0, "grad_norm": 1.0}))
        if step % 5_000 == 0:
            log.append(Logged(level="info", message=f'{step} says "type":"metrics"'))
    log.append(Ended(state="completed"))
    with file.open("ab") as torn:
        torn.write(b'{"seq":99999,"time":1.0,"type":"log","level":"info","mess')
    found = [event.message for event in find_events(file, Logged)]
    assert found == [f'{step} says "type":"metrics"' for step in (0, 5_000, 10_000, 15_000)]
    assert [event.type for event in find_events(file, Ended, Logged)] == ["log"] * 4 + ["ended"]
    log.close()


def test_numbers_continue_after_invalid_lines_and_after_the_servers_count(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for step in range(5):
        log.append(Progress(step=step, total_steps=5))
    log.close()
    for rubbish in (b"not json\n", b'{"seq": "x"}\n', b"\0" * (3 << 20) + b"\n", b"torn"):
        with path.open("ab") as file:
            file.write(rubbish)
        log = EventLog(path)
        assert log.seq == 5
        assert path.read_bytes().endswith(b"\n")
        log.close()
    assert EventLog(path, after_seq=8).append(Progress(step=9, total_steps=9)) == 9
    # Readers may have read a part of a line that is longer than any event.
    path.write_bytes(b"x" * (5 << 20))
    _, read = read_events(path)
    assert EventLog(path).append(Progress(step=1, total_steps=1)) == 1
    assert [event.seq for event in read_events(path, read)[0]] == [1]


@given(
    numbers=st.lists(st.integers(1, 30), max_size=20),
    after=st.integers(0, 5),
)
def test_accepted_numbers_only_grow(numbers: list[int], after: int) -> None:
    events = [Progress(seq=number, time=0.0, step=0, total_steps=1) for number in numbers]
    kept = [event.seq for event in in_order(events, after)]
    assert kept == sorted(set(kept))
    assert all(number > after for number in kept)
    if numbers == sorted(set(numbers)):
        assert kept == [number for number in numbers if number > after]


def test_a_number_far_ahead_does_not_discard_later_events() -> None:
    events = [Progress(seq=number, time=0.0, step=0, total_steps=1) for number in (1, 2, 500, 3, 4, 2, 5)]
    assert [event.seq for event in in_order(events, 0)] == [1, 2, 3, 4, 5]


def test_no_text_makes_a_line_too_long_to_read(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(Logged(level="info", message="\1" * 5_000_000))
    log.append(Progress(step=1, total_steps=1))
    log.close()
    assert [event.seq for event in read_events(tmp_path / "events.jsonl")[0]] == [1, 2]


def test_the_move_of_a_model_is_found_in_logs_of_earlier_versions(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"seq":1,"time":1.0,"type":"set_aside","folder":"/m/o","kept_as":"/m/o.before-x"}\n')
    log = EventLog(file)
    log.append(Moved(folder="/m/o", kept_as="/m/o.before-y"))
    log.close()
    assert [event.kept_as for event in find_events(file, Moved)] == ["/m/o.before-x", "/m/o.before-y"]


def test_the_order_of_an_earlier_version_has_its_number_of_ranks(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = TrainingConfig.model_validate(
        {"base_model": "m", "output_name": "o", "dataset": {"source": {"source_type": "huggingface", "repo_id": "a/b"}}}
    )
    folder.write_order(RunOrder(job_id="job", attempt=1, config=config, output_dir="models/o", num_ranks=2))
    folder.order_file.write_text(folder.order_file.read_text().replace("num_ranks", "processes"))
    assert folder.read_order().num_ranks == 2
