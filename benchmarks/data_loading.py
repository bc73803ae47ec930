"""Time and memory of a run from `loading_dataset` to `training`, for a large file of short rows.

    python benchmarks/data_loading.py [--rows 200000] [--tokenizer FOLDER] [--format chatml] [--baseline CHECKOUT]

Each row has a prompt of 14 words and answers of 22 and 14, 370 characters in all. The run trains one step of a tiny
model with the tokenizer of FOLDER, by default the tiny one, which has two tokens for three characters. Memory is the
largest resident set of the worker until it trains. With a baseline, a server of that checkout measures the same file
before and after.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import psutil
from common import Server, build_tiny_model, server_with_spare_process, training_config

from merlina.run_folder.event_log import read_events
from merlina.schemas.events import Ended, StateChanged

_SYLLABLES = ("ba", "den", "for", "gi", "hall", "in", "ke", "lor", "me", "nu", "or", "pan", "ri", "sto", "tur", "we")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer of transformers")
    parser.add_argument("--format", default="chatml", help="chat format")
    parser.add_argument("--baseline", type=Path, help="another checkout of Merlina")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = build_tiny_model(root / "model", tokenizer_of=options.tokenizer)
        rows = _write_rows(root / "rows.jsonl", options.rows)
        print(f"{options.rows:,} rows, {rows.stat().st_size / 1e6:.0f} MB")
        print("| | s | rows per second | memory, MB |")
        print("| --- | --- | --- | --- |")
        config = training_config(model, rows, "measured", max_steps=1, max_length=512, save_steps=0, eval_steps=0)
        config["dataset"] |= {"format": {"format_type": options.format}, "test_size": 0.01}
        order = ["this"] if options.baseline is None else ["baseline", "this", "baseline", "this"]
        for number, name in enumerate(order):
            source = None if name == "this" else options.baseline / "src"
            seconds, memory = _measure(root / f"server-{number}", source, config)
            print(f"| {name} | {seconds:.1f} | {options.rows / seconds:,.0f} | {memory:.0f} |", flush=True)


def _write_rows(file: Path, count: int) -> Path:
    generator = random.Random(0)  # noqa: S311
    words = [first + second for first in _SYLLABLES for second in (*_SYLLABLES, "")]

    def text(length: int) -> str:
        return " ".join(generator.choices(words, k=length))

    with file.open("w") as stream:
        for _ in range(count):
            row = {"prompt": f"{text(14)}?", "chosen": f"{text(22)}.", "rejected": f"{text(14)}."}
            stream.write(json.dumps(row) + "\n")
    return file


def _measure(root: Path, source: Path | None, config: dict[str, object]) -> tuple[float, float]:
    """Return the seconds of the stage, and the largest resident set of the worker in it, in MB."""
    root.mkdir()
    settings = {"ALLOWED_PATHS": str(root.parent)}
    if source is not None:
        settings["PYTHONPATH"] = str(source.resolve())
    server = server_with_spare_process(root, **settings).start()
    try:
        with server.http() as http:
            answer = http.post("/train", json=config)
            assert answer.status_code == 200, answer.text
        job, memory = answer.json()["job_id"], 0.0
        while "training" not in (begun := _states(server, job)):
            memory = max(memory, _resident(server, job))
            time.sleep(0.1)
        return begun["training"] - begun["loading_dataset"], memory
    finally:
        server.stop()
        server.end_workers()


def _states(server: Server, job: str) -> dict[str, float]:
    """Return when each state of the run began. Raises RuntimeError if it has failed."""
    if not server.folder(job).events_file.exists():
        return {}
    events, _ = read_events(server.folder(job).events_file, limit_bytes=1 << 24)
    if (last := next((event for event in events if isinstance(event, Ended)), None)) is not None:
        raise RuntimeError(last.error)
    return {event.state: event.time for event in events if isinstance(event, StateChanged)}


def _resident(server: Server, job: str) -> float:
    worker = server.folder(job).worker()
    try:
        return 0.0 if worker is None else psutil.Process(worker.pid).memory_info().rss / 1e6
    except psutil.NoSuchProcess:
        return 0.0


if __name__ == "__main__":
    main()
