"""Import of large modules. Garbage collection, which finds nothing there, would add a fifth to the seconds it takes."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterable
from types import ModuleType

# Modules that take long to import and neither open a GPU nor query one: afterwards, a process may still fork or receive
# CUDA_VISIBLE_DEVICES. peft is not one of them: it imports bitsandbytes, which opens every GPU that it sees.
OPENING_NO_GPU = (
    "numpy",
    "torch",
    "pyarrow",
    "pandas",
    "datasets",
    "accelerate",
    "transformers.models.auto.modeling_auto",
    "torch.distributed.tensor",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "merlina.worker.helper.previews",
    "merlina.training.evaluation",
)


def import_without_gc(names: Iterable[str]) -> list[ModuleType]:
    """Import the modules without garbage collection, and exclude their objects from all later collections."""
    gc.disable()
    try:
        modules = [importlib.import_module(name) for name in names]
        gc.freeze()
    finally:
        gc.enable()
    return modules
