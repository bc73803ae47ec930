"""Runs of cases by Merlina or by a peer, each in a process of its own, over the same token ids.

    python benchmarks/contenders.py merlina|trl|liger

reads cases from standard input, one JSON object a line, and answers each with a line of JSON. `Contender` does so from
another process. `trl` is TRL's trainer for the objective, `liger` the same with Liger's kernels. The precomputation of
reference log-probabilities is not timed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from cases import Case, Clock, Ids, Outcome


class Contender:
    """A process that runs cases as `who`, one at a time."""

    def __init__(self, who: str) -> None:
        self.who = who
        environment = {"TRL_EXPERIMENTAL_SILENCE": "1", **os.environ}
        if who == "merlina":
            # As in a worker (`merlina.worker.__main__`).
            environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        # What a library prints must not mix with the answers.
        self._process = subprocess.Popen(
            [sys.executable, __file__, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, case: Case) -> Outcome:
        """Run a case. Raises SystemExit if the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.who} died with exit code {self._process.wait()}")
        return Outcome(**json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run_alone(who: str, case: Case) -> Outcome:
    """Run one case in a new process. Raises SystemExit if it failed."""
    contender = Contender(who)
    found = contender.run(case)
    contender.close()
    if found.error:
        raise SystemExit(f"{who}: {found.error}")
    return found


def serve(who: str) -> None:
    """Answer cases from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_libraries(who)
    for line in sys.stdin:
        answers.write(json.dumps(asdict(_run(who, Case(**json.loads(line))))) + "\n")
        answers.flush()


def _import_libraries(who: str) -> None:
    # Imports take up to half a minute on some machines, in which another contender may use the GPU.
    for name in ("peft", "merlina.training.loop.trainer") if who == "merlina" else ("peft", "trl.experimental.orpo"):
        importlib.import_module(name)


def _run(who: str, case: Case) -> Outcome:
    import torch
    from merlina_run import run_merlina
    from trl_run import run_trl

    pairs: list[Ids] = json.loads(Path(case.ids).read_text())
    clock, found = Clock(), Outcome()
    _forget_memory()
    try:
        with tempfile.TemporaryDirectory() as folder:
            if who == "merlina":
                run_merlina(case, pairs, clock, Path(folder), found)
            else:
                found.losses = run_trl(case, pairs, clock, Path(folder), uses_liger=who == "liger")
    except (Exception, SystemExit) as error:
        # A case that fails must not end the others; out of memory is a result.
        found.error = f"{type(error).__name__}: {str(error)[:300]}"
        return found
    finally:
        _forget_memory(keep_peak=True)
    counted = pairs[case.warmup_steps * case.pairs_per_step : len(clock.ticks) * case.pairs_per_step]
    seconds = clock.ticks[-1] - clock.ticks[case.warmup_steps - 1]
    found.tokens_per_second = sum(_num_tokens(case.objective, *pair) for pair in counted) / seconds
    if torch.cuda.is_available():
        found.peak_gb = torch.cuda.max_memory_allocated() / 1e9
        found.reserved_gb = torch.cuda.max_memory_reserved() / 1e9
    else:
        found.peak_gb = _peak_resident_bytes() / 1e9
    return found


def _num_tokens(objective: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> int:
    answers = (chosen,) if objective == "sft" else (chosen, rejected)
    return sum(len(prompt) + len(answer) for answer in answers if answer)


def _forget_memory(*, keep_peak: bool = False) -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if not keep_peak:
            torch.cuda.reset_peak_memory_stats()


def _peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    import common  # noqa: F401  (makes the tests importable)

    serve(sys.argv[1])
