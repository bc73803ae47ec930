"""Messages of `/validate` and `/model/preload` about a run before it starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Server, pairs_file, training_config


def validate(server: Server, config: dict[str, Any]) -> dict[str, Any]:
    with server.http() as http:
        response = http.post("/validate", json=config)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["results"]
    return found


def test_a_plan_of_few_steps_is_a_warning_with_its_numbers(server: Server, tiny_model: Path) -> None:
    pairs = pairs_file(server.root / "few.jsonl", rows=12)
    config = training_config(
        tiny_model, pairs, "few", batch_size=1, gradient_accumulation_steps=16, learning_rate=5e-6, num_epochs=2
    )
    found = validate(server, config)
    (warning,) = [line for line in found["warnings"] if line.startswith("Only")]
    assert "Only 2 optimizer steps with a peak learning rate of 5e-06" in warning
    assert "11 training pairs, 16 per step, 2 epochs. The model will hardly change" in warning
    assert found["checks"]["steps_suffice"] is False
    enough = validate(server, {**config, "learning_rate": 1e-3, "num_epochs": 10})
    assert enough["checks"]["steps_suffice"] is True


def test_max_samples_is_not_the_number_of_rows_of_a_file_that_is_too_large_to_count(
    server: Server, tiny_model: Path
) -> None:
    pairs = pairs_file(server.root / "uncounted.jsonl", rows=3000)
    with pairs.open("a") as file:
        filler = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "note": "x" * 2**20})
        file.writelines(f"{filler}\n" for _ in range(130))
    config = training_config(tiny_model, pairs, "uncounted")
    config["dataset"]["max_samples"] = 10_000_000
    found = validate(server, config)
    pairs.unlink()
    assert "steps_suffice: the number of pairs is unknown" in found["not_checked"]


def test_a_token_that_the_model_does_not_have_is_named_with_its_row(server: Server, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    model = Path(shutil.copytree(tiny_model, server.root / "added-token"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<|added|>"])
    tokenizer.save_pretrained(model)
    pairs = pairs_file(server.root / "added.jsonl", rows=9)
    pairs.write_text(pairs.read_text().replace("It is 6.", "<|added|>"))
    (error,) = validate(server, training_config(model, pairs, "added"))["errors"]
    assert "row 4 contains the token id 400, but the model has only the ids 0 to 399" in error


@pytest.mark.parametrize(("limit", "positions", "expected"), [(77, 512, 77), (None, 512, 512), (None, None, 1_048_576)])
def test_the_longest_text_of_a_model_is_an_integer(
    server: Server, tiny_model: Path, tmp_path: Path, limit: int | None, positions: int | None, expected: int
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("model_max_length", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings | ({"model_max_length": limit} if limit else {})))
    if positions is None:
        config = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 400, "state_size": 4}
        (model / "config.json").write_text(json.dumps(config))
    with server.http() as http:
        response = http.post("/model/preload", json={"model_name": str(model)})
    assert response.json()["model_max_length"] == expected
