"""Token ids of every data set format and method that TRL has, compared with those of TRL's own trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merlina.data.conversation import Pair
from merlina.data.dataset import read_pairs
from merlina.schemas.datasets.config import DatasetConfig, TrainingMode, answers_needed
from merlina.worker.encoding import PairEncoder
from tests.tiny import build_tiny_model
from tests.worker.chat_templates import PLAIN

pytestmark = pytest.mark.slow

# The prompt, and each answer, as token ids.
_Ids = tuple[list[int], ...]
_WORDS = ["Rhine", "a hill", "längst", "数学", "no", "x = 1\n  y = 2", "🙂 ok", "- one\n- two"]
_ARGUMENTS: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "activation_checkpointing": False}
_TOOL = {
    "type": "function",
    "function": {
        "name": "height",
        "description": "Height of a hill",
        "parameters": {"type": "object", "properties": {"hill": {"type": "string"}}, "required": ["hill"]},
    },
}
_TEMPLATES = ("chatml", "BOS first", "tools section", "roles renamed", "end of turn is not the end of text", "trims")


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _prompts() -> list[list[dict[str, str]]]:
    asked = [[_said("user", f"Name it: {word}")] for word in _WORDS]
    earlier = [_said("user", "Hi"), _said("assistant", "Hello!")]
    return [
        *asked,
        *([_said("system", "Be brief."), *turns] for turns in asked),
        *([*earlier, *turns] for turns in asked),
    ]


def _conversations(*names: str, **more: Any) -> list[dict[str, Any]]:
    """Return rows with the prompt and an answer by each of the names."""
    return [
        {
            "prompt": prompt,
            **{name: [_said("assistant", f"{name}, {number}. {_WORDS[number % 8]}")] for name in names},
            **more,
        }
        for number, prompt in enumerate(_prompts())
    ]


def _texts(*names: str) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Q: {word}\nA:", **{name: f" {name} {number} {word}" for name in names}}
        for number, word in enumerate(_WORDS)
    ]


def _labeled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "label": number % 3 > 0} for number, row in enumerate(rows)]


def _implicit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: [*row["prompt"], *row[name]] for name in ("chosen", "rejected")} for row in rows]


def _of_several_turns(*, with_shared_turns: bool = False) -> list[dict[str, Any]]:
    """Return rows of which one answer has three turns, the other three, some of which may be the same, or one."""
    rows = []
    for number, row in enumerate(_conversations("chosen", "rejected")):
        asked = _said("user", f"Why {_WORDS[number % 8]}?")
        chosen = [*row["chosen"], asked, _said("assistant", "Because.")]
        rejected = [*row["rejected"], asked, _said("assistant", f"No. {number}")] if number % 3 else row["rejected"]
        if with_shared_turns and number % 4 == 0:
            rejected = [*chosen[:-1], _said("assistant", f"No. {number}")]
        rows.append({**row, "chosen": chosen, "rejected": rejected})
    return rows


_PAIRS: dict[str, list[dict[str, Any]]] = {
    "preference, standard": _texts("chosen", "rejected"),
    "preference, conversational": _conversations("chosen", "rejected"),
    "preference, conversational with an implicit prompt": _implicit(_conversations("chosen", "rejected")),
    "preference, conversational with answers of several turns": _of_several_turns(with_shared_turns=True),
    "preference, conversational with answers of several turns and an implicit prompt": _implicit(_of_several_turns()),
    "preference with tools": _conversations("chosen", "rejected", tools=[_TOOL]),
}
# TRL leaves tools out for orpo and cpo.
_PAIRS_WITHOUT_TOOLS = {name: rows for name, rows in _PAIRS.items() if "tools" not in name}
_UNPAIRED = {
    "unpaired preference, standard": _labeled(_texts("completion")),
    "unpaired preference, conversational": _labeled(_conversations("completion")),
}
_DEMONSTRATIONS = {
    "prompt-completion, standard": _texts("completion"),
    "prompt-completion, conversational": _conversations("completion"),
    "language modeling, conversational": [
        {"messages": [*row["prompt"], *row["completion"]]} for row in _conversations("completion")
    ],
    "language modeling with tools": [
        {"messages": [*row["prompt"], *row["completion"]], "tools": [_TOOL]} for row in _conversations("completion")
    ],
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def _dpo(model: Any, tokenizer: Any, rows: Any, folder: str) -> list[_Ids]:
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(folder, max_length=None, **_ARGUMENTS)
    made = DPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer).train_dataset
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in made]


def _orpo(model: Any, tokenizer: Any, rows: Any, folder: str) -> list[_Ids]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    settings = ORPOConfig(folder, max_length=4096, **_ARGUMENTS)
    return _of_sequences(ORPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer))


def _cpo(model: Any, tokenizer: Any, rows: Any, folder: str) -> list[_Ids]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    settings = CPOConfig(folder, max_length=4096, **_ARGUMENTS)
    return _of_sequences(CPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer))


def _of_sequences(trainer: Any) -> list[_Ids]:
    """Return prompts and answers from sequences of both, whose labels omit the prompt."""
    found = []
    for row in trainer.train_dataset:
        answers = [
            [token for token, label in zip(row[f"{name}_input_ids"], row[f"{name}_labels"], strict=True) if label >= 0]
            for name in ("chosen", "rejected")
        ]
        found.append((row["chosen_input_ids"][: -len(answers[0])], *answers))
    return found


def _kto(model: Any, tokenizer: Any, rows: Any, folder: str) -> list[_Ids]:
    from trl import KTOConfig, KTOTrainer

    settings = KTOConfig(folder, max_length=None, per_device_train_batch_size=2, **_ARGUMENTS)
    made = KTOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer).train_dataset
    return [(row["prompt_ids"], row["completion_ids"], [row["label"]]) for row in made]


def _sft(model: Any, tokenizer: Any, rows: Any, folder: str) -> list[_Ids]:
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(folder, max_length=None, **_ARGUMENTS)
    made = SFTTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer).train_dataset
    return [(row["input_ids"],) for row in made]


_CASES: list[tuple[TrainingMode, Callable[..., list[_Ids]], dict[str, list[dict[str, Any]]]]] = [
    ("dpo", _dpo, _PAIRS),
    ("orpo", _orpo, _PAIRS_WITHOUT_TOOLS),
    ("cpo", _cpo, _PAIRS_WITHOUT_TOOLS),
    ("kto", _kto, _UNPAIRED),
    ("sft", _sft, _DEMONSTRATIONS),
]


@pytest.mark.parametrize(
    ("mode", "make", "name", "rows"),
    [(mode, make, name, rows) for mode, make, sets in _CASES for name, rows in sets.items()],
    ids=[f"{mode}: {name}" for mode, _, sets in _CASES for name in sets],
)
def test_tokens_are_those_of_trl(
    mode: TrainingMode,
    make: Callable[..., list[_Ids]],
    name: str,
    rows: list[dict[str, Any]],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    templates = _TEMPLATES
    if mode in ("orpo", "cpo"):
        # These trainers add a BOS to every prompt, also for a tokenizer that adds none.
        templates = tuple(template for template in templates if template != "BOS first")
    else:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        model.resize_token_embeddings(len(tokenizer))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compared = 0
    for template in ("tools section",) if "tools" in name else ("chatml",) if "standard" in name else templates:
        tokenizer.chat_template = PLAIN[template]
        theirs = make(model, tokenizer, Dataset.from_list(rows), str(tmp_path))
        ours = _ours(mode, tokenizer, file, "raw" if "standard" in name else "tokenizer")
        assert len(ours) == len(theirs) == len(rows)
        for made, expected in zip(ours, theirs, strict=True):
            _assert_same(made, expected, tokenizer)
            compared += sum(map(len, expected))
    print(f"{mode}, {name}: {compared:,} token ids")


def _ours(mode: TrainingMode, tokenizer: Any, file: Path, format_type: str) -> list[_Ids]:
    config = DatasetConfig.model_validate(
        {
            "source": {"source_type": "local_file", "file_path": str(file)},
            "format": {"format_type": format_type},
            "training_mode": mode,
        }
    )
    encoder = PairEncoder(tokenizer, "tiny", config.format)
    found: list[_Ids] = []
    for pair in read_pairs(config, file, None, answers_needed=answers_needed(mode)):
        assert isinstance(pair, Pair), pair
        ids = encoder.encode(pair).tokens
        if mode == "sft":
            found.append((ids.prompt + ids.chosen,))
        elif mode == "kto":
            found.append((ids.prompt, ids.chosen or ids.rejected, [bool(ids.label)]))
        else:
            found.append((ids.prompt, ids.chosen, ids.rejected))
    return found


def _assert_same(made: _Ids, expected: _Ids, tokenizer: Any) -> None:
    """TRL also trains whitespace after the end of a turn, and for orpo and cpo a second end token after it."""
    (*prompt, first), (*theirs_prompt, theirs_first) = made[:2], expected[:2]
    assert prompt == theirs_prompt
    assert first == _ended(theirs_first, tokenizer)
    for ours, theirs in zip(made[2:], expected[2:], strict=True):
        assert ours == (theirs if isinstance(theirs[0], bool) else _ended(theirs, tokenizer))


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    """Return the ids with one end token, which nothing follows. No answer here ends with whitespace of its own."""
    end = tokenizer.eos_token_id
    while ids[-1] == end or not tokenizer.decode([ids[-1]]).strip():
        ids = ids[:-1]
    return [*ids, end]
