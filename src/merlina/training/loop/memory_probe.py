"""A pack as large as any of a run's, tried before its first step: what doesn't fit is known in the first minute."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from merlina.domain.units import gib
from merlina.errors import TrainingError
from merlina.schemas.training import smaller_budget
from merlina.training.engine.packing import PackedExample
from merlina.training.engine.passes import PassPlanner
from merlina.training.loop.alarms import Notify


def find_fitting_planner(
    passes: PassPlanner, examples: Sequence[PackedExample], run: Callable[[Sequence[PackedExample]], None], say: Notify
) -> PassPlanner:
    """Return passes with the largest budget for which `run`, a pass forward and backward, finds room.

    All ranks end with the same one. Raises TrainingError if not even the largest example fits and, if ranks are in
    lockstep, as soon as one runs out: the others wait for it in a pass. On a processor nothing is raised: the system
    ends a process that takes too much, and the server says so.
    """
    least = max(passes.batching.size([example]) for example in examples)
    while True:
        worst = passes.largest(examples)
        fits = True
        try:
            run(worst)
        except torch.OutOfMemoryError as error:
            if passes.ranks_in_lockstep or passes.budget <= least:
                raise TrainingError(_does_not_fit(worst, passes, least)) from error
            fits = False
        if not passes.ranks.max(not fits):
            return passes
        torch.cuda.empty_cache()
        smaller = max(smaller_budget(passes.budget), least)
        say("info", f"No room on the GPU for {passes.budget:,} tokens in one forward pass; trying {smaller:,}")
        passes = replace(passes, budget=smaller)


@contextlib.contextmanager
def hold_step_memory(weights: Iterable[nn.Parameter], state_bytes: float, *, has_gradients: bool) -> Iterator[None]:
    """With what is held for the trained weights while a step's passes are made; nothing of it is left.

    That is the optimizer's state, so many bytes for each, and the gradients of the passes before.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    size = int(state_bytes * sum(weight.numel() for weight in trained))
    # Ones, since a system gives no memory for what is only reserved.
    state = torch.ones(size, dtype=torch.uint8, device=trained[0].device)
    try:
        if has_gradients:
            for weight in trained:
                weight.grad = torch.zeros_like(weight)
        yield
    finally:
        del state
        for weight in trained:
            weight.grad = None


def _does_not_fit(worst: Sequence[PackedExample], passes: PassPlanner, longest: int) -> str:
    if passes.budget > longest:
        message = (
            f"{len(worst)} pairs in one pass, {passes.batching.size(worst):,} tokens, don't fit on the GPU beside "
            "a part of the model. In order of effect: gradient_checkpointing, use_4bit, a smaller batch_size or "
            "gradient_accumulation_steps, a smaller lora_r"
        )
    else:
        message = (
            f"The longest pair, {longest:,} tokens with both answers, doesn't fit on the GPU. In order of effect: "
            f"gradient_checkpointing, use_4bit, a max_length below {longest // 2:,}, a smaller lora_r"
        )
    if not torch.cuda.is_available():
        return message
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.max_memory_allocated()
    return (
        f"{message}. The run held {gib(held)} of the card's {gib(total)} when it failed, and "
        f"{gib(total - free)} are in use in all: something else on the card may be in its way"
    )
