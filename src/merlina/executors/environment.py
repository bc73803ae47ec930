"""The command and the environment variables of the processes that Merlina starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_SERVER_ONLY = {"API_KEY", "MERLINA_API_KEY", "DATABASE_URL", "HF_TOKEN", "WANDB_API_KEY"}
_ALWAYS = {
    "PYTHONUNBUFFERED": "1",
    # A tokenizer encodes many texts in several threads. No process forks after it has done so.
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # A run on several GPUs forks its ranks after these imports, and a fork copies no thread.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # A check for GPUs by torch must not open them: a spare process gets CUDA_VISIBLE_DEVICES with its assignment.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


def python_module(name: str) -> list[str]:
    """Return the command that runs a module of Merlina.

    With -P, Python does not search the current folder for modules: a `random.py` in the folder in which the server was
    started would take the place of the standard library's.
    """
    return [sys.executable, "-P", "-m", name]


def child_environment() -> dict[str, str]:
    """Return this process's environment without the variables that only the server may know."""
    environment = {name: value for name, value in os.environ.items() if name.upper() not in _SERVER_ONLY} | _ALWAYS
    # Threads that spin while they wait bring a run to a halt as soon as another process needs a core.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The threads of a tokenizer. With more than eight, the other work on the rows takes longer.
    environment.setdefault("RAYON_NUM_THREADS", str(min(8, _available_cores())))
    # No process compiles with torch; support for it would cost a second in each one that imports bitsandbytes.
    environment.setdefault("TORCHDYNAMO_DISABLE", "1")
    return environment


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(gpus: Sequence[int] | None) -> dict[str, str]:
    """Return the variables that restrict a process to these GPUs; none if it may use all."""
    if gpus is None:
        return {}
    # NVML counts by bus; CUDA must count the same way for the indices to mean the same cards.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
