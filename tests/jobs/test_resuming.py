from __future__ import annotations

from pathlib import Path

from merlina.data.fingerprint import Fingerprint
from merlina.executors.helper_process import HelperPool
from merlina.jobs.resuming import compare_with
from merlina.schemas.training.config import TrainingConfig
from tests.harness import pairs_file, training_config


def test_rows_that_the_server_cannot_compare_in_time_are_left_to_the_worker(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "pairs.jsonl")
    config = TrainingConfig.model_validate(training_config(tmp_path / "model", file, "o"))
    then = Fingerprint(rows=1, held_out=0, blocks=("another",))
    helper = HelperPool(60, tmp_path / "log")
    helper.close()
    assert compare_with(helper, 16, lambda _: {})(config, file, then) is None
