from __future__ import annotations

import pytest

from merlina.errors import StoredConfigError
from merlina.schemas.parsing.stored_config import read_stored_config, read_stored_partial
from merlina.schemas.training.config import TrainingConfig

SOURCE = {"source_type": "local_file", "file_path": "/d.jsonl"}
NEEDED = {"base_model": "m", "output_name": "o", "dataset": {"source": SOURCE}}


def test_a_stored_configuration_is_read_unchanged() -> None:
    config = TrainingConfig.model_validate({**NEEDED, "lora_r": 7})
    assert read_stored_config(config.model_dump(mode="json"), "job_1") == config


@pytest.mark.parametrize(
    ("older", "method"),
    [
        ({"dataset": {"source": SOURCE, "training_mode": "dpo"}}, "dpo"),
        ({"dataset": {"source": SOURCE, "training_mode": None}}, "orpo"),
        ({"hf_namespace": None}, "orpo"),
    ],
)
def test_known_older_forms_are_read(older: dict[str, object], method: str) -> None:
    assert read_stored_config({**NEEDED, **older}, "job_1").training_mode == method


def test_a_data_set_to_evaluate_on_is_stored_in_one_form() -> None:
    options = {"source": SOURCE, "column_mapping": None, "row_format": None, "max_samples": None}
    for given in (SOURCE, {"source": SOURCE}):
        for field in ("eval_source", "eval_sources"):
            value = given if field == "eval_source" else {"x": given}
            config = read_stored_config({**NEEDED, "dataset": {"source": SOURCE, field: value}}, "job_1")
            stored = config.model_dump(mode="json", exclude_defaults=False)
            found = stored["dataset"][field] if field == "eval_source" else stored["dataset"][field]["x"]
            assert {**found, "source": SOURCE} == options
            assert found["source"].items() >= SOURCE.items()
            assert read_stored_config(stored, "job_1") == config


def test_a_run_of_an_earlier_version_is_repeated_as_it_was() -> None:
    later = {"disable_dropout", "lr_scheduler_cycles", "lr_scheduler_power"}
    stored = TrainingConfig.model_validate({**NEEDED, "lr_scheduler_type": "cosine_with_restarts"}).model_dump()
    read = read_stored_config({name: value for name, value in stored.items() if name not in later}, "job_1")
    assert (read.disable_dropout, read.lr_scheduler_power, read.lr_scheduler_type) == (False, 1.0, "cosine")
    assert read_stored_config(stored, "job_1").lr_scheduler_type == "cosine_with_restarts"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"from_tomorrow": 1}, "from_tomorrow: unknown field"),
        ({"training_mode": "telepathy"}, "training_mode: "),
        ({"from_tomorrow": 1, "lora_r": 0}, r"\(and 1 more\)"),
        ({"dataset": "gone"}, "dataset: "),
    ],
)
def test_an_unreadable_configuration_is_one_error(change: dict[str, object], problem: str) -> None:
    for read in (read_stored_config, read_stored_partial):
        with pytest.raises(StoredConfigError, match=problem) as caught:
            read({**NEEDED, **change}, "job_1")
        assert "job_1 was stored by another version of Merlina" in caught.value.message
        assert "\n" not in caught.value.message
        assert "pydantic" not in caught.value.message


def test_a_partial_configuration_may_lack_fields() -> None:
    assert read_stored_partial({"lora_r": 7, "hf_namespace": None}, "mine") == {"lora_r": 7}
