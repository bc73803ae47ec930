"""The finished model's folder contains the chat template and the tokens that end an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merlina.data.conversation import Message, Pair, assistant
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.order import RunOrder
from merlina.schemas.training.config import TrainingConfig
from merlina.worker.encoding import PairEncoder
from merlina.worker.run.finished_model.saving import save_model
from merlina.worker.run.reporting import EventReporter
from merlina.worker.run.stages import TrainingData
from merlina.worker.run.stop_requests import ReceivedRequests
from tests.harness import training_config
from tests.tiny import build_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose EOS ends documents, while the turns of the chat format end with another token."""
    folder = build_tiny_model(tmp_path_factory.mktemp("base"))
    for name in ("tokenizer_config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        # A setting that does nothing without sampling, such as many published models have.
        changed = {"eos_token": "<|endoftext|>"} if "tokenizer" in name else {"eos_token_id": 0, "temperature": 0.6}
        (folder / name).write_text(json.dumps({**content, **changed}))
    return folder


@pytest.mark.parametrize("use_lora", [True, False])
def test_a_saved_model_ends_answers_as_in_training(base: Path, tmp_path: Path, use_lora: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    config = TrainingConfig.model_validate(
        training_config(base, tmp_path / "pairs.jsonl", "m", use_lora=use_lora, use_4bit=False)
    )
    order = RunOrder(job_id="job", attempt=1, config=config, output_dir=str(tmp_path / "m"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])) if use_lora else model
    encoder = PairEncoder(tokenizer, "it", config.dataset.format, 512, 256)
    trained = encoder.encode(Pair((Message("user", "Hi"),), assistant("Yes"), assistant("No"))).tokens
    reporter = EventReporter(
        EventLog(tmp_path / "events.jsonl"), ReceivedRequests(tmp_path / "stop", tmp_path / "pause")
    )
    save_model(model, tokenizer, order, TrainingData([], (), 0), {}, reporter, 1, was_stopped=False)
    saved, how = AutoTokenizer.from_pretrained(tmp_path / "m"), GenerationConfig.from_pretrained(tmp_path / "m")
    assert saved.convert_ids_to_tokens(how.eos_token_id) == ["<|endoftext|>", "<|im_end|>"]
    assert trained.chosen[-1] == how.eos_token_id[1]
    assert how.temperature == 0.6
    turns = [{"role": "user", "content": "Hi"}]
    assert saved.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == trained.prompt
