"""A run in two processes, which communicate over gloo: the result is that of one process, also after failures."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from merlina.errors import DataError
from merlina.executors.local import LocalExecutor
from merlina.run_folder.event_log import read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.datasets.sources import DatasetSource
from merlina.schemas.events import Event, KnownEvent
from merlina.schemas.training.config import TrainingConfig
from merlina.training.distributed.ranks import join_ranks
from merlina.worker.run.reporting import EventReporter, NullChannel
from merlina.worker.run.stages import Stages
from tests.harness import pairs_file, training_config, until

pytestmark = pytest.mark.slow

_LONG = {"max_steps": 300, "num_epochs": 1000, "save_steps": 10, "eval_steps": 0}


@dataclass
class Runs:
    """Start runs as the server does."""

    root: Path
    base_model: Path
    executor: LocalExecutor
    started: list[RunFolder] = field(default_factory=list)

    def order(self, name: str, processes: int, **changes: Any) -> RunOrder:
        given = training_config(self.base_model, pairs_file(self.root / "pairs.jsonl"), name, **changes)
        return RunOrder(
            job_id=name, attempt=1, config=TrainingConfig.model_validate(given), num_ranks=processes,
            dataset_file=str(self.root / "pairs.jsonl"), output_dir=str(self.root / "models" / name),
        )  # fmt: skip

    def start(self, order: RunOrder) -> RunFolder:
        run = RunFolder(self.root / order.job_id)
        self.started.append(run)
        self.executor.launch(run, order, None)
        return run

    def finish(self, order: RunOrder) -> list[Event]:
        run = self.start(order)
        self.until_ended(run)
        return events_of(run)

    def until_ended(self, run: RunFolder) -> None:
        until(lambda: not self.executor.is_alive(run), 120, f"the end of {run.path.name}")

    def until_step(self, run: RunFolder, step: int) -> None:
        until(lambda: any(getattr(event, "step", 0) >= step for event in events_of(run)), 120, f"step {step}")

    def adapter(self, name: str) -> dict[str, Any]:
        return load_file(self.root / "models" / name / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("ranks")
    runs = Runs(root, tiny_model, LocalExecutor({}, spares=None))
    yield runs
    for run in runs.started:
        runs.executor.kill(run)


def events_of(run: RunFolder) -> list[Event]:
    return read_events(run.events_file)[0] if run.events_file.exists() else []


def metrics_of(events: list[Event]) -> dict[tuple[int, str], float]:
    """Return the metrics that depend neither on time nor on the process."""
    return {
        (event.step, name): value
        for event in events
        if event.type == "metrics"
        for name, value in event.metrics.items()
        if name not in ("tokens_per_second", "memory_gib")
    }


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the largest relative difference of any weight matrix."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


def ranks_of(run: RunFolder) -> list[psutil.Process]:
    worker = run.worker()
    assert worker is not None
    return psutil.Process(worker.pid).children()


_SAME: dict[str, Any] = {
    "batch_size": 5, "gradient_accumulation_steps": 1, "lora_dropout": 0.0, "num_epochs": 1000, "max_steps": 40,
    "eval_steps": 20, "save_steps": 10, "load_best_at_end": "eval_loss",
}  # fmt: skip


@pytest.mark.parametrize("training_mode", [pytest.param("orpo", marks=pytest.mark.long), "kto"])
def test_two_processes_train_the_same_model_as_one_also_after_a_rank_was_killed(runs: Runs, training_mode: str) -> None:
    """A step has five pairs, the last one of an epoch a single pair. KTO also sums the reference and the divergence."""
    one = runs.finish(runs.order(f"{training_mode}-one", 1, training_mode=training_mode, **_SAME))
    two = runs.finish(runs.order(f"{training_mode}-two", 2, training_mode=training_mode, **_SAME))
    assert (one[-1].type, one[-1].state, two[-1].state) == ("ended", "completed", "completed"), two[-1]
    assert any(event.type == "log" and "in 2 processes" in event.message for event in two)
    assert [event.seq for event in two] == list(range(1, len(two) + 1))
    assert metrics_of(two) == pytest.approx(metrics_of(one), rel=1e-4, abs=1e-6)
    assert distance(runs.adapter(f"{training_mode}-two"), runs.adapter(f"{training_mode}-one")) < 1e-5

    order = runs.order(f"{training_mode}-broken", 2, training_mode=training_mode, **_SAME)
    run = runs.start(order)
    runs.until_step(run, 12)
    first, second = ranks_of(run)
    second.kill()
    runs.until_ended(run)
    failed = events_of(run)[-1]
    assert (failed.type, failed.state) == ("ended", "failed")
    assert "Process 2 of 2 was killed from outside (signal 9, SIGKILL)" in str(failed.error)
    until(lambda: not first.is_running(), 10, "the end of the other rank")
    resumed = runs.finish(order.model_copy(update={"attempt": 2, "resume": True}))
    assert resumed[-1].state == "completed", resumed[-1]
    whole, broken = (runs.adapter(f"{training_mode}-{name}") for name in ("two", "broken"))
    assert all(tensor.equal(whole[name]) for name, tensor in broken.items())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("noise", {"training_mode": "dpo", "neftune_noise_alpha": 5.0, "ld_alpha": 0.5}),
        pytest.param("dora", {"training_mode": "dpo", "use_dora": True}, marks=pytest.mark.long),
        pytest.param("whole", {"modules_to_save": ["lm_head", "embed_tokens"]}, marks=pytest.mark.long),
    ],
)
def test_two_processes_train_the_same_model_as_one_with_other_settings(
    runs: Runs, name: str, changes: dict[str, Any]
) -> None:
    same: dict[str, Any] = {
        **changes, "batch_size": 5, "gradient_accumulation_steps": 1, "lora_dropout": 0.0,
        "eval_steps": 4, "save_steps": 3, "load_best_at_end": "eval_loss",
    }  # fmt: skip
    one = runs.finish(runs.order(f"{name}-one", 1, **same))
    two = runs.finish(runs.order(f"{name}-two", 2, **same))
    assert (one[-1].state, two[-1].state) == ("completed", "completed"), two[-1]
    assert metrics_of(two) == pytest.approx(metrics_of(one), rel=1e-4, abs=1e-6)
    assert distance(runs.adapter(f"{name}-two"), runs.adapter(f"{name}-one")) < 1e-5


def test_a_stop_ends_all_ranks_at_the_same_step_with_the_model_saved(runs: Runs) -> None:
    run = runs.start(runs.order("stopped", 2, **_LONG))
    runs.until_step(run, 5)
    ranks = ranks_of(run)
    assert len(ranks) == 2
    runs.executor.request_stop(run)
    runs.until_ended(run)
    last = events_of(run)[-1]
    assert (last.type, last.state) == ("ended", "stopped")
    assert runs.adapter("stopped")
    until(lambda: not any(rank.is_running() for rank in ranks), 10, "the end of all ranks")


def test_all_ranks_map_the_token_ids_of_the_first(runs: Runs) -> None:
    # Without a key, use_wandb only writes a note.
    order = runs.order("mapped", 2, **_LONG, max_length=512, use_wandb=True)
    answers = {"chosen": "the rune agrees " * 100, "rejected": "no rune agrees " * 100}
    rows = [{"prompt": f"What is {number}?", **answers} for number in range(6000)]
    file = runs.root / "many.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source_type": "local_file", "file_path": str(file)}
    dataset = order.config.dataset.model_copy(update={"source": DatasetSource.model_validate(source)})
    config = order.config.model_copy(update={"dataset": dataset})
    run = runs.start(order.model_copy(update={"config": config, "dataset_file": str(file)}))
    runs.until_step(run, 1)
    ids = str(run.tokens_dir / "ids")
    assert [ids in [each.path for each in rank.memory_maps()] for rank in ranks_of(run)] == [True, True]
    notes = [event.message for event in events_of(run) if event.type == "log"]
    assert sum(note.startswith("use_wandb: it needs a wandb_key") for note in notes) == 1
    runs.executor.kill(run)


class _RewritingLog(NullChannel):
    """A log that replaces the data set as soon as the first rank has read and encoded all of its rows."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, event: KnownEvent) -> int:
        if event.type == "log" and event.message == "40 rows read, all of them usable":
            pairs_file(self._file, rows=30)
        return 0


def _load_data(rank: int, run: RunFolder, order: RunOrder) -> None:
    """Load model and data as a rank does, and write the error that stops it."""
    ranks = join_ranks(rank, 2, run.rendezvous_file, torch.device("cpu"))
    log = NullChannel() if rank else _RewritingLog(Path(str(order.dataset_file)))
    stages = Stages(run, order, EventReporter(log, NullChannel()), ranks)
    try:
        stages.load_data(stages.load_model())
    except DataError as error:
        (run.path / f"error-{rank}").write_text(error.message)
    finally:
        ranks.leave()


def test_ranks_that_find_another_data_set_than_the_first_refuse_it(runs: Runs) -> None:
    file = pairs_file(runs.root / "rewritten.jsonl", rows=40)
    order = runs.order("rewritten", 2).model_copy(update={"dataset_file": str(file)})
    run = RunFolder(runs.root / "rewritten")
    run.path.mkdir()
    second = multiprocessing.get_context("spawn").Process(target=_load_data, args=(1, run, order))
    second.start()
    _load_data(0, run, order)
    second.join(60)
    assert second.exitcode == 0
    (error,) = run.path.glob("error-*")
    assert error.name == "error-1"
    assert error.read_text().startswith(
        "The data set changed while the processes of this run loaded it: 40 usable rows when the run started, 30 now; "
    )
    assert error.read_text().endswith("Make sure that nothing writes to it and POST /jobs/rewritten/resume")


def _kill_worker(run: RunFolder) -> None:
    worker = run.worker()
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)


def _kill_first_rank(run: RunFolder) -> None:
    ranks_of(run)[0].kill()


@pytest.mark.parametrize("kill", [_kill_worker, pytest.param(_kill_first_rank, marks=pytest.mark.long)])
def test_no_rank_outlives_the_run(runs: Runs, kill: Callable[[RunFolder], None]) -> None:
    run = runs.start(runs.order(f"orphaned{kill.__name__}", 2, **_LONG))
    runs.until_step(run, 2)
    ranks = ranks_of(run)
    kill(run)
    runs.until_ended(run)
    until(lambda: not any(rank.is_running() for rank in ranks), 10, "the end of all ranks")


def test_an_error_of_every_rank_is_reported_once(runs: Runs) -> None:
    events = runs.finish(runs.order("wrong", 2, target_modules=["no_such_layer"]))
    assert [event.type for event in events].count("ended") == 1
    assert events[-1].state == "failed"
    assert str(events[-1].error).startswith("target_modules: the model has no layers named no_such_layer")
