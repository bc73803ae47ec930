"""Whole runs on a GPU through the API: first steps, expected against used memory, kill and resume, stop, chat.

Part of `gpu.py`. The model has random weights in the shape of Llama 3.2 1B; without a GPU, a tiny one takes its place.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from cases import SHAPES
from common import Server, build_tiny_model, pairs_file, server_with_spare_process, training_config

from merlina.run_folder.event_log import read_events
from merlina.schemas.events import Progress

_STEP_SECONDS = 240.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, pairs = _model(root / "model"), pairs_file(root / "pairs.jsonl", 400)
        server = server_with_spare_process(root, STOP_GRACE_SECONDS="60")
        begun = time.monotonic()
        server.start()
        print(f"server ready after {time.monotonic() - begun:.1f} s", flush=True)
        runs = _Runs(server, training_config(model, pairs, "x", max_length=1024, max_prompt_length=512, batch_size=8))
        try:
            for check in (_first_steps, _kill_and_resume, _stop, _chat, _memory):
                _report(check, runs)
        finally:
            server.end_workers()
            server.stop()
        lines = (root / "server.log").read_text().splitlines()
        errors = [line for line in lines if "ERROR" in line or "Traceback" in line]
        print(f"errors in the server's log: {errors or 'none'}")


def _report(check: Callable[[_Runs], None], runs: _Runs) -> None:
    begun = time.monotonic()
    try:
        check(runs)
    except Exception as error:
        # The checks after it can still tell something.
        print(f"{check.__name__[1:]} FAILED: {type(error).__name__}: {str(error)[:500]}")
    print(f"    ({check.__name__[1:]} took {time.monotonic() - begun:.1f} s)", flush=True)


def _model(folder: Path) -> Path:
    """Write the model: the tiny one with its tokenizer, whose weights are replaced if there is a GPU."""
    build_tiny_model(folder)
    if torch.cuda.is_available():
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(folder)
        shape = SHAPES["1b"]
        config = LlamaConfig(
            **shape, head_dim=64, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, dtype="bfloat16",
        )  # fmt: skip
        with torch.device("cuda"):
            LlamaForCausalLM(config).bfloat16().cpu().save_pretrained(folder)
        torch.cuda.empty_cache()
    return folder


class _Runs:
    """Starts runs and reports what was measured."""

    def __init__(self, server: Server, config: dict[str, Any]) -> None:
        self.server = server
        self.config = {**config, "gradient_accumulation_steps": 1, "dtype": "bfloat16", "eval_steps": 0}
        self.last = ""
        # Before any run holds memory of the GPU.
        self.idle_bytes = _used_bytes()

    def start(self, name: str, **changes: Any) -> str:
        self.last = self.server.train({**self.config, "output_name": name, **changes})
        return self.last

    def post(self, path: str, **body: Any) -> httpx.Response:
        with httpx.Client(base_url=self.server.url, timeout=240) as http:
            return http.post(path, json=body or None)

    def finish(self, job_id: str, seconds: float = 120) -> str:
        """Wait for the end of a job. Returns its state, and its error if it has one."""
        status = self.server.until_ended(job_id, seconds)
        return f"{status.status}{f': {status.error}' if status.error else ''}"

    def timeline(self, job_id: str, began: float) -> str:
        """Return the seconds from a time to each state and to the first optimizer step."""
        found: dict[str, float] = {}
        events, _ = read_events(self.server.folder(job_id).events_file)
        for event in events:
            name = "first step" if isinstance(event, Progress) and event.step else getattr(event, "state", event.type)
            found.setdefault(name, event.time - began)
            if name == "first step":
                break
        return ", ".join(f"{name} {seconds:.2f}" for name, seconds in found.items())


def _first_steps(runs: _Runs) -> None:
    for name, wait in (("cold", 0.0), ("warm", 15.0), ("warm again", 15.0)):
        time.sleep(wait)
        began = time.time()
        job_id = runs.start(name.replace(" ", "-"), max_steps=3)
        ended = runs.finish(job_id, 240)
        print(f"{name}: {ended}; seconds from POST /train: {runs.timeline(job_id, began)}", flush=True)


def _memory(runs: _Runs) -> None:
    """Compare expected and used memory, for the default settings (4 bits, paged 8-bit AdamW) and for bfloat16."""
    for name, changes in (
        ("4-bit", {"use_4bit": True, "optimizer_type": "paged_adamw_8bit"}),
        ("bfloat16", {}),
        ("gradient checkpointing", {"gradient_checkpointing": True}),
        ("every weight", {"use_lora": False, "optimizer_type": "adamw_8bit"}),
    ):
        body = {**runs.config, "output_name": f"memory-{name.split()[0]}", "max_steps": 4, **changes}
        memory = (runs.post("/validate", **body).json().get("results") or {}).get("memory")
        with _Watch(runs.idle_bytes) as watch:
            job_id = runs.start(f"memory-{name.split()[0]}", max_steps=4, **changes)
            ended = runs.finish(job_id, 240)
        with runs.server.client() as client:
            rows = client.metrics(job_id).metrics
        print(f"{name}: {ended}; used at most {watch.peak_mib:,.0f} MiB of the card; estimated {memory}")
        print(f"    losses {[round(row.loss, 4) for row in rows if row.loss is not None]}", flush=True)


class _Watch(threading.Thread):
    """Records the most memory that is used on the first GPU, in MiB, beyond `idle_bytes`."""

    def __init__(self, idle_bytes: int) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0
        self._idle_bytes = idle_bytes
        self._ended = threading.Event()

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.peak_mib = max(self.peak_mib, (_used_bytes() - self._idle_bytes) / 2**20)


def _used_bytes() -> int:
    """Return the memory of the first GPU that all processes together use; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    import pynvml

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)
    return int(pynvml.nvmlDeviceGetMemoryInfo(card).used)


def _kill_and_resume(runs: _Runs) -> None:
    steps = {"max_steps": 12, "save_steps": 4}
    undisturbed = runs.start("undisturbed", **steps)
    runs.finish(undisturbed)
    job_id = runs.start("killed", **steps)
    runs.server.until_step(job_id, 6, _STEP_SECONDS)
    runs.server.kill_worker(job_id)
    killed = runs.finish(job_id)
    resumed = runs.post(f"/jobs/{job_id}/resume")
    ended = runs.finish(job_id)
    expected, found = runs.server.losses(undisturbed), runs.server.losses(job_id)
    apart = max(abs((found.get(step) or 0) - (loss or 0)) for step, loss in expected.items())
    print(f"killed: {killed}; resumed ({resumed.status_code}): {ended}; {len(found)} of {len(expected)} steps recorded")
    print(f"    largest difference of a loss to the undisturbed run: {apart:.1e}")


def _stop(runs: _Runs) -> None:
    job_id = runs.start("stopped", max_steps=400)
    runs.server.until_step(job_id, 3, _STEP_SECONDS)
    begun = time.monotonic()
    runs.post(f"/jobs/{job_id}/stop")
    ended = runs.finish(job_id)
    status = runs.server.status(job_id)
    print(f"stopped: {ended} after {time.monotonic() - begun:.1f} s at step {status.current_step}; {status.output_dir}")


def _chat(runs: _Runs) -> None:
    for side in ("tuned", "base", "tuned"):
        begun = time.monotonic()
        answer = runs.post(
            "/chat/answer", job_id=runs.last, side=side, max_new_tokens=64,
            messages=[{"role": "user", "content": "Why is the sky blue?"}],
        )  # fmt: skip
        print(f"chat, {side}: {answer.status_code} after {time.monotonic() - begun:.1f} s; …{answer.text[-150:]!r}")


if __name__ == "__main__":
    main()
