"""Uploads to a Hub on the loopback interface that refuses them or fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from merlina.run_folder.event_log import read_events
from tests.harness import training_config
from tests.hub import FakeHub, fake_hub

pytestmark = pytest.mark.slow

# The client reads its endpoint once, when it is imported: so the uploads are made in a process of their own.
PUBLISH = """
import json, os, sys
from pathlib import Path
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.order import RunOrder
from merlina.schemas.training.config import TrainingConfig
from merlina.worker.run.finished_model.publishing import publish
from merlina.worker.run.reporting import EventReporter
from merlina.worker.run.stages import TrainingData
from merlina.worker.run.stop_requests import ReceivedRequests
folder = Path(sys.argv[1])
reporter = EventReporter(EventLog(folder / "events.jsonl"), ReceivedRequests(folder / "stop", folder / "pause"))
for config, token, result in json.loads(sys.argv[2]):
    os.environ["HF_TOKEN"] = token
    config = TrainingConfig.model_validate(config)
    order = RunOrder(job_id="job", attempt=1, config=config, output_dir=str(folder / result))
    publish(None, None, order, TrainingData([], (), 0), {}, reporter, folder)
"""


def upload_each(hub: FakeHub, folder: Path, uploads: list[tuple[str, str]]) -> list[str]:
    """Return the last message about each upload (an output_name and a token) and about a very large model's adapter."""
    (folder / "m").mkdir()
    (folder / "m" / "model.safetensors").write_bytes(b"weights")
    changes = {"use_lora": False, "push_to_hub": True}
    configs = [training_config(folder / "base", folder / "pairs.jsonl", name, **changes) for name, _ in uploads]
    orders = [[config, token, "m"] for config, (_, token) in zip(configs, uploads, strict=True)]
    arguments = json.dumps([*orders, [adapter_of_giant(folder), "hf_right", "adapter"]])
    offline_no_more = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **offline_no_more, "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-c", PUBLISH, str(folder), arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "hf_right" not in done.stderr + (folder / "events.jsonl").read_text()
    return [event.message for event in read_events(folder / "events.jsonl")[0] if event.type == "log"]


def adapter_of_giant(folder: Path) -> dict[str, Any]:
    """Return the configuration of a 4-bit run. In 16 bits, its base model would need about 5 TB."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 2**17, "intermediate_size": 2**18, "num_hidden_layers": 16, "vocab_size": 1000}
    LlamaConfig(**sizes).save_pretrained(folder / "giant")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    changes = {"use_lora": True, "use_4bit": True, "push_to_hub": True}
    return training_config(folder / "giant", folder / "pairs.jsonl", "org/giant", **changes)


def test_an_upload_succeeds_or_its_failure_is_reported_with_a_remedy(tmp_path: Path) -> None:
    expected = {
        "refused": "may not write to org/refused; set one with write access (the Hub: You don't have the rights",
        "readonly": "may not write to org/readonly; set one with write access",
        "broken": "The Hub failed to respond for the model 'org/broken' (status 500); try again later",
        "public": "org/public already exists and is public, but hf_hub_private is true; make it private",
    }
    trouble = ["refuse creation org/refused", "refuse writing org/readonly", "fail commit org/broken"]
    with fake_hub({"models/org/readonly": {}, "models/org/public": {}}, "hf_right", trouble) as hub:
        hub.private["org/readonly"] = True
        uploads = [(f"org/{name}", "hf_right") for name in expected]
        uploads += [("org/x", "hf_wrong"), ("org/x", ""), ("alone", "hf_right")]
        *messages, unknown, none, made, not_merged, made_alone = upload_each(hub, tmp_path, uploads)
    for words, (name, complaint) in zip(messages, expected.items(), strict=True):
        assert words.startswith("The upload to the Hub failed: ")
        assert complaint in words
        assert words.endswith(f"`hf upload org/{name} {tmp_path / 'm'} --private` uploads it")
    assert "The Hub rejected the given hf_token" in unknown
    assert "there is no hf_token; set one with write access" in none
    assert made == f"Uploaded to {hub.endpoint}/user/alone"
    assert not_merged.startswith("merge_lora_before_upload: the base model in 16 bits needs about ")
    assert not_merged.endswith(" GiB are free, so the adapter alone is uploaded")
    assert made_alone == f"Uploaded to {hub.endpoint}/org/giant"
    assert "PeftModel.from_pretrained" in hub.repos["models/org/giant"]["README.md"].decode()
    assert [repo for repo, files in hub.repos.items() if files] == ["models/user/alone", "models/org/giant"]
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["model.safetensors"]
    assert not list(tmp_path.glob(".m.*"))
    look_at_whole_model(hub.repos["models/user/alone"])
    assert hub.private["user/alone"]


def look_at_whole_model(files: dict[str, bytes]) -> None:
    """An upload without a namespace goes to the account's own, and the card loads it from there."""
    assert set(files) == {"model.safetensors", "README.md", "merlina.json"}
    assert files["model.safetensors"] == b"weights"
    assert "AutoModelForCausalLM.from_pretrained('user/alone', dtype=torch.float32)" in files["README.md"].decode()
    assert json.loads(files["merlina.json"])["dataset"]["source"]["file_path"] == "pairs.jsonl"
