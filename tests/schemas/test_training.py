from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from merlina.schemas.chat import AnswerRequest
from merlina.schemas.configs import ImportConfigRequest, SaveConfigRequest
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.datasets.sources import DatasetSource
from merlina.schemas.parsing.validation_errors import describe
from merlina.schemas.training.config import TrainingConfig

DATASET = {"source": {"source_type": "huggingface", "repo_id": "org/set"}}
NEEDED = {"base_model": "org/model", "output_name": "tuned", "dataset": DATASET}

# The values of the API document's TrainingConfig, as the contract changes them.
DEFAULTS: dict[str, Any] = {
    "use_lora": True, "lora_r": 64, "lora_alpha": 32, "lora_dropout": 0.05,
    "target_modules": ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"],
    "learning_rate": 5e-6, "num_epochs": 2, "batch_size": 1, "gradient_accumulation_steps": 16,
    "max_length": 2048, "max_prompt_length": 1024, "beta": 0.1, "seed": 42, "max_grad_norm": 0.3,
    "warmup_ratio": 0.05, "eval_steps": 0.2, "use_4bit": True, "use_wandb": False, "push_to_hub": False,
    "merge_lora_before_upload": True, "hf_hub_private": True, "hf_token": None, "wandb_key": None,
    "shuffle_dataset": True, "weight_decay": 0.01, "lr_scheduler_type": "cosine", "gradient_checkpointing": False,
    "logging_steps": 1, "optimizer_type": "paged_adamw_8bit", "adam_beta1": 0.9, "adam_beta2": 0.999,
    "adam_epsilon": 1e-8, "attn_implementation": "auto", "gpu_ids": None, "wandb_project": None,
    "wandb_run_name": None, "wandb_tags": None, "wandb_notes": None,
}  # fmt: skip


def problems(**changes: Any) -> list[str]:
    try:
        TrainingConfig.model_validate({**NEEDED, **changes})
    except ValidationError as error:
        return [str(finding) for finding in describe(error, TrainingConfig)]
    return []


def test_defaults_are_those_documented() -> None:
    config = TrainingConfig.model_validate(NEEDED).model_dump(mode="json")
    assert {name: config[name] for name in DEFAULTS} == DEFAULTS
    assert config["dataset"]["source"]["split"] == "train"
    assert config["dataset"]["format"] == {
        "format_type": "chatml", "custom_templates": None, "enable_thinking": True, "system_as_user": False,
    }  # fmt: skip
    assert (config["dataset"]["test_size"], config["dataset"]["max_samples"]) == (0.01, None)


def test_the_needed_fields_are_named_when_missing() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate({})
    lines = [str(finding) for finding in describe(caught.value, TrainingConfig)]
    assert lines == [f"{name}: required, but missing" for name in ("base_model", "output_name", "dataset")]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lerning_rate": 1e-5}, "lerning_rate: unknown field; did you mean learning_rate?"),
        ({"dataset": {**DATASET, "fromat": {}}}, "dataset.fromat: unknown field; did you mean format?"),
        ({"dataset": {"source": {**DATASET["source"], "repoid": 1}}}, "dataset.source.repoid: unknown field; did you"),
        ({"batch_size": "4"}, "batch_size: should be a valid integer, not '4'"),
        ({"batch_size": 1.5}, "batch_size: should be a valid integer, not 1.5"),
        (
            {"target_modules": "q_proj"},
            "target_modules: must be a list of layer names, or \"all-linear\", not 'q_proj'",
        ),
        ({"target_modules": 5}, 'target_modules: must be a list of layer names, or "all-linear"'),
        ({"gpu_ids": "0"}, "gpu_ids: should be a list, not '0'"),
        ({"use_4bit": "false"}, "use_4bit: should be a valid boolean, not 'false'"),
        ({"learning_rate": -1}, "learning_rate: should be greater than 0, not -1"),
        ({"learning_rate": float("nan")}, "learning_rate: should be a finite number"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: should be 'cosine'"),
        ({"output_name": "../x"}, "output_name: '../x' is not a valid name"),
        ({"gpu_ids": [0, 0]}, "gpu_ids: [0, 0] must be a list of distinct GPU indices"),
        ({"dataset": {**DATASET, "column_mapping": {"a": "chosen", "b": "chosen"}}}, "mapped to chosen"),
        ({"dataset": {**DATASET, "column_mapping": {"a": "answer"}}}, "dataset.column_mapping.a: should be 'prompt'"),
        ({"dataset": {**DATASET, "test_size": 1}}, "dataset.test_size: should be less than 1, not 1"),
        (
            {"dataset": {**DATASET, "eval_source": {**DATASET, "weight": 2}}},
            "dataset.eval_source.weight: unknown field",
        ),
        (
            {"dataset": {**DATASET, "eval_source": {**DATASET["source"], "revison": "v1"}}},
            "dataset.eval_source.revison: unknown field; did you mean revision?",
        ),
        (
            {"dataset": {**DATASET, "eval_source": {**DATASET, "max_sample": 5}}},
            "dataset.eval_source.max_sample: unknown field; did you mean max_samples?",
        ),
        (
            {"dataset": {**DATASET, "eval_sources": {"x": {**DATASET, "colum_mapping": {}}}}},
            "dataset.eval_sources.x.colum_mapping: unknown field; did you mean column_mapping?",
        ),
        (
            {"dataset": {**DATASET, "eval_sources": {"x": {**DATASET["source"], "revison": "v1"}}}},
            "dataset.eval_sources.x.revison: unknown field; did you mean revision?",
        ),
        (
            {"dataset": {"sources": [DATASET, {**DATASET, "wieght": 2}]}},
            "dataset.sources.1.wieght: unknown field; did you mean weight?",
        ),
        (
            {"dataset": {"sources": [{"source": {**DATASET["source"], "splt": "test"}}]}},
            "dataset.sources.0.source.splt: unknown field; did you mean split?",
        ),
        (
            {"dataset": {**DATASET, "eval_sources": {"x": {**DATASET["source"], "shuffle": True}}}},
            "dataset.eval_sources.x.shuffle: unknown field",
        ),
        (
            {"dataset": {**DATASET, "eval_source": {**DATASET, "column_mapping": {"a": "chosen", "b": "chosen"}}}},
            "dataset.eval_source.column_mapping: more than one column is mapped to chosen",
        ),
        ({"dataset": {**DATASET, "eval_source": "pairs.jsonl"}}, "dataset.eval_source: should be a JSON object"),
    ],
)
def test_an_invalid_value_is_named_with_the_allowed_ones(changes: dict[str, Any], complaint: str) -> None:
    lines = problems(**changes)
    assert len(lines) == 1, lines
    assert complaint in lines[0]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"max_prompt_length": 2048}, "max_prompt_length: 2048 must be below max_length (2048)"),
        ({"early_stopping_patience": 2, "eval_steps": 0}, "early_stopping_patience: needs evaluations: eval_steps"),
        ({"load_best_at_end": "eval_loss", "eval_steps": 0}, "load_best_at_end: needs evaluations: eval_steps"),
        (
            {"load_best_at_end": "eval_reward_margin", "training_mode": "sft"},
            "load_best_at_end: sft has no eval_reward_margin; use eval_loss",
        ),
        ({"output_name": "org/x"}, "output_name: 'org/x' has a '/', which requires push_to_hub"),
        ({"use_4bit": True, "use_8bit": True}, "use_4bit: is mutually exclusive with use_8bit"),
        (
            {"use_lora": False},
            "use_lora: false trains all weights, which 4-bit weights do not support: set use_4bit to false",
        ),
        (
            {"use_lora": False, "use_8bit": True},
            "use_lora: false trains all weights, which 8-bit weights do not support",
        ),
        (
            {"dataset": {"source": {"source_type": "upload"}}},
            "dataset.source.dataset_id: required by source_type 'upload'",
        ),
        (
            {"dataset": {**DATASET, "format": {"format_type": "custom"}}},
            "dataset.format.custom_templates: required by format_type 'custom'",
        ),
        (
            {"dataset": {**DATASET, "eval_source": {"source_type": "upload"}}},
            "dataset.eval_source.dataset_id: required by source_type 'upload'",
        ),
        (
            {"dataset": {**DATASET, "eval_sources": {"x": {"source": {"source_type": "upload"}}}}},
            "dataset.eval_sources.x.source.dataset_id: required by source_type 'upload'",
        ),
        (
            {"dataset": {**DATASET, "eval_sources": {"x": {**DATASET["source"], "max_samples": 5}}}},
            'dataset.eval_sources.x.max_samples: belongs beside source, as in {"source": {…}, "max_samples": …}',
        ),
    ],
)
def test_contradicting_fields_are_attributed_to_one_field(changes: dict[str, Any], complaint: str) -> None:
    (line,) = problems(**changes)
    assert line.startswith(complaint)
    with pytest.raises(ValidationError, match=re.escape(complaint.split(".")[-1])):
        TrainingConfig.model_validate({**NEEDED, **changes})


def test_tokens_are_taken_out_and_never_shown() -> None:
    config = TrainingConfig.model_validate({**NEEDED, "hf_token": "hf_secret", "wandb_key": "w_secret"})
    assert config.secrets() == {"hf_token": "hf_secret", "wandb_key": "w_secret"}
    shown = [repr(config), str(config), config.model_dump_json(), config.without_secrets().model_dump_json()]
    assert not any("secret" in text for text in shown)
    assert config.without_secrets().secrets() == {}
    assert "secret" not in " ".join(problems(hf_token="hf_secret", wandb_key=["w_secret"]))


def test_the_documents_own_configuration_is_accepted() -> None:
    document = {
        **NEEDED, **DEFAULTS, "gpu_ids": [0], "use_wandb": True, "wandb_project": "p", "wandb_tags": ["a"],
        "dataset": {
            "source": {**DATASET["source"], "file_path": None, "file_format": None, "dataset_id": None},
            "format": {"format_type": "chatml", "custom_templates": None, "enable_thinking": True},
            "model_name": None, "column_mapping": None, "test_size": 0.01, "max_samples": None,
        },
    }  # fmt: skip
    assert problems(**json.loads(json.dumps(document))) == []


def test_every_field_has_a_description() -> None:
    undescribed = [name for name, field in TrainingConfig.model_fields.items() if not field.description]
    assert undescribed == ["dataset"]


def test_a_token_loses_the_white_space_of_pasting_and_nothing_else_is_let_into_a_header() -> None:
    pasted = TrainingConfig.model_validate({**NEEDED, "hf_token": " hf_abc\n"})
    assert pasted.secrets() == {"hf_token": "hf_abc"}
    for token in ("hf_a\nb", "hf_a b", "hf_\0", "hf_ü"):
        (line,) = problems(hf_token=token)
        assert line == "hf_token: contains characters that are not valid in a token"
    assert TrainingConfig.model_validate({**NEEDED, "hf_token": " "}).secrets() == {}


def test_integers_may_be_written_with_a_decimal_point() -> None:
    changes = {"batch_size": 8.0, "max_steps": 30.0, "gpu_ids": [0.0, 1.0], "seed": 7, "num_epochs": 2.0}
    config = TrainingConfig.model_validate({**NEEDED, **changes, "dataset": {**DATASET, "max_samples": 10.0}})
    assert (config.batch_size, config.max_steps, config.gpu_ids, config.dataset.max_samples) == (8, 30, [0, 1], 10)
    assert all(type(value) is int for value in (config.batch_size, config.max_steps, *(config.gpu_ids or ())))
    assert type(config.num_epochs) is float
    sampling = AnswerRequest.model_validate(
        {"job_id": "j", "side": "base", "messages": [{"role": "user", "content": "q"}], "max_new_tokens": 5.0}
    )
    assert sampling.max_new_tokens == 5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dataset": 3}, "dataset: should be a JSON object, not 3"),
        ({"dataset": {"source": []}}, "dataset.source: should be a JSON object"),
        ({"dataset": {**DATASET, "column_mapping": []}}, "dataset.column_mapping: should be a JSON object"),
        ({"target_modules": []}, "target_modules: should have at least 1 item, not 0"),
        ({"wandb_tags": ["a"] * 100}, "wandb_tags: should have at most 64 items, not 100"),
        ({"base_model": ""}, "base_model: should have at least 1 character, not ''"),
        ({"base_model": "\ud800"}, "base_model: contains half of a surrogate pair"),
        (
            {"dataset": {"source": {"source_type": "huggingface", "repo_id": "a b"}}},
            "dataset.source.repo_id: 'a b' is not a Hub id; use org/name",
        ),
        (
            {"dataset": {"source": {"source_type": "upload", "dataset_id": "1"}}},
            "dataset.source.dataset_id: '1' is not an upload id, such as upload_2026",
        ),
    ],
)
def test_messages_speak_of_json_and_show_no_pattern(changes: dict[str, Any], complaint: str) -> None:
    (line,) = problems(**changes)
    assert line.startswith(complaint)


def test_no_schema_has_a_pattern_that_would_be_shown_to_users() -> None:
    requests = [TrainingConfig, DatasetConfig, DatasetSource, SaveConfigRequest, ImportConfigRequest]
    fields = [field for model in requests for field in model.model_fields.values()]
    assert not [field for field in fields if any(getattr(rule, "pattern", None) for rule in field.metadata)]


@pytest.mark.parametrize("value", [8.5, 1e300, "8", True, None])
def test_other_values_are_not_integers(value: Any) -> None:
    assert [line.partition(":")[0] for line in problems(batch_size=value)] == ["batch_size"]


def test_fields_that_older_clients_send_are_accepted() -> None:
    config = TrainingConfig.model_validate(
        {**NEEDED, "hf_namespace": None, "dataset": {**DATASET, "training_mode": "sft"}}
    )
    assert config.training_mode == "sft"
    assert not problems(training_mode="dpo", dataset={**DATASET, "training_mode": "dpo"})


def test_fields_of_older_clients_are_refused_if_their_meaning_has_changed() -> None:
    differing = problems(training_mode="dpo", dataset={**DATASET, "training_mode": "sft"})
    assert differing == ["dataset.training_mode: 'sft' differs from training_mode 'dpo'; leave it out"]
    assert problems(dataset={**DATASET, "training_mode": "rlhf"})[0].startswith("dataset.training_mode: ")
    assert [line.partition(":")[0] for line in problems(hf_namespace="org")] == ["hf_namespace"]


def test_the_prompt_length_follows_the_longest_pair_unless_it_is_set() -> None:
    assert TrainingConfig.model_validate({**NEEDED, "max_length": 256}).max_prompt_length == 128
    assert TrainingConfig.model_validate({**NEEDED, "max_length": 8192}).max_prompt_length == 4096
    assert TrainingConfig.model_validate({**NEEDED, "max_length": 256, "max_prompt_length": 64}).max_prompt_length == 64
