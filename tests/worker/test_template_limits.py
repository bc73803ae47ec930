"""The limits of a chat template in a run: one that misbehaves on some row ends the run with the reason."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from merlina.domain.units import GIB
from merlina.run_folder.folder import RunFolder
from tests.harness import until
from tests.worker.test_worker import log_of, order_of

pytestmark = pytest.mark.slow

USUAL = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
HARMFUL = {
    "has no end": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "computes for more than 2 s on one row; correct it",
    ),
    "fills the memory at once": ("{{ 'a' * 3000000000 }}", "exceeded its memory limit and was ended"),
    "fills the memory bit by bit": (
        "{% for i in range(99999) %}{{ ('a' ~ i) * 20000 }}{% endfor %}",
        "exceeded its memory limit and was ended",
    ),
    "writes a book": ("{% for i in range(9999) %}{{ 'a' * 2000 }}{% endfor %}", "renders 19,998,"),
}


def model_with(model: Path, folder: Path, template: str) -> Path:
    """Return a copy of a model whose template is harmless except for the question about 600."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(
        f"{{% if '600' in messages[0].content %}}{template}{{% else %}}{USUAL}{{% endif %}}"
    )
    return folder


def work(folder: Path) -> None:
    """Be the worker of a run folder."""
    from merlina.worker.__main__ import main

    with RunFolder(folder).locked() as lock:
        main([str(folder), "--lock-fd", str(lock)])


@pytest.fixture(scope="module")
def worker_of() -> Callable[[Path], BaseProcess]:
    """Start workers by fork from one process that has completed the imports, which saves seconds of each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["merlina.worker.run.run"])

    def start(folder: Path) -> BaseProcess:
        process = context.Process(target=work, args=(folder,))
        process.start()
        return process

    return start


@pytest.mark.parametrize(("template", "problem"), HARMFUL.values(), ids=HARMFUL)
def test_a_template_that_exceeds_a_limit_on_a_later_row_ends_the_run(
    tiny_model: Path, tmp_path: Path, worker_of: Callable[[Path], BaseProcess], template: str, problem: str
) -> None:
    model = model_with(tiny_model, tmp_path / "model", template)
    rows = [{"prompt": f"What is {n}?", "chosen": "A number.", "rejected": "A word."} for n in range(650)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"source": {"source_type": "local_file", "file_path": str(file)}, "format": {"format_type": "tokenizer"}}
    run, most = RunFolder(tmp_path / "run"), [0]
    run.path.mkdir()
    run.write_order(order_of(tmp_path, model, file, dataset=dataset))
    worker = worker_of(run.path)

    def has_ended() -> bool:
        status = Path(f"/proc/{worker.pid}/status")
        lines = status.read_text().splitlines() if worker.is_alive() and status.exists() else []
        most[0] = max(most[0], *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
        return not worker.is_alive()

    until(has_ended, 120, "the run's end")
    ended = log_of(run)[-1]
    assert ended.state == "failed"
    assert str(model) in ended.error
    assert problem in ended.error
    assert 0 < most[0] < 2 * GIB
