"""The server process never imports the libraries for training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness import Server

pytestmark = pytest.mark.slow

HEAVY = ("torch", "transformers", "datasets", "pandas", "peft", "accelerate", "bitsandbytes")
SCRIPT = """
import json, sys
from pathlib import Path
from starlette.testclient import TestClient
from merlina.api.app import create_app
from merlina.settings import Settings
root = Path(sys.argv[1])
app = create_app(Settings(data_dir=root / "data", models_dir=root / "models", allowed_paths=[root]))
with TestClient(app, base_url="http://localhost") as client:
    assert client.get("/health").status_code == 200
    source = {"source": {"source_type": "local_file", "file_path": str(root / "pairs.jsonl")}}
    assert client.post("/dataset/preview-formatted", json=source).status_code == 200
    body = {"base_model": "/nowhere", "output_name": "x", "dataset": source}
    assert client.post("/validate", json=body).json()["valid"] is False
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.long
def test_nothing_heavy_is_among_the_servers_modules(tmp_path: Path) -> None:
    from tests.harness import pairs_file

    pairs_file(tmp_path / "pairs.jsonl")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "merlina.api.app" in loaded
    assert [name for name in loaded if name.split(".")[0] in HEAVY] == []


def test_a_real_server_maps_no_torch_and_stays_small(server: Server) -> None:
    assert server.process is not None
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert psutil.Process(server.process.pid).memory_info().rss < 200e6
