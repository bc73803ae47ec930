"""A pack as large as any of a run's, tried before its first step: what doesn't fit is known in the first minute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from merlina.errors import TrainingError
from merlina.training.alarms import Say
from merlina.training.packing import SharedPrompt, cut

_GB = 1e9


def largest_pack(units: Sequence[SharedPrompt], budget: int) -> list[SharedPrompt]:
    """The pack of `units` with the most positions that `budget` allows; the longest unit where that is longer."""
    packs = cut(units, budget)
    fullest = max(packs, key=lambda indices: sum(units[index].positions for index in indices))
    return [units[index] for index in fullest]


def fitting_budget(
    units: Sequence[SharedPrompt], budget: int, run: Callable[[Sequence[SharedPrompt]], None], say: Say
) -> int:
    """The largest budget, halved from `budget` on, of which `run`, forward and backward of one pack, finds room.

    Raises TrainingError where not even the longest unit fits. On a processor nothing is raised: the system ends a
    process that takes too much, and the server says so.
    """
    longest = max(unit.positions for unit in units)
    while True:
        worst = largest_pack(units, budget)
        try:
            run(worst)
        except torch.OutOfMemoryError as error:
            if budget <= longest:
                raise TrainingError(_does_not_fit(longest)) from error
        else:
            return budget
        torch.cuda.empty_cache()
        smaller = max(budget // 2, longest)
        say("info", f"No room on the GPU for {budget:,} tokens in one forward pass; trying {smaller:,}")
        budget = smaller


def _does_not_fit(longest: int) -> str:
    message = (
        f"The longest pair, {longest:,} tokens with both answers, doesn't fit on the GPU. In order of effect: "
        f"gradient_checkpointing, use_4bit, a max_length below {longest // 2:,}, a smaller lora_r"
    )
    if not torch.cuda.is_available():
        return message
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.max_memory_allocated()
    return (
        f"{message}. The run held {held / _GB:.1f} GB of the card's {total / _GB:.1f} GB when it failed, and "
        f"{(total - free) / _GB:.1f} GB are in use in all: something else on the card may be in its way"
    )
