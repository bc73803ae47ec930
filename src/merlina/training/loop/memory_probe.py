"""The memory probe: a trial of the largest pass before the first step, which detects a lack of memory at once.

On a GPU it also reduces the size of passes until they fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from merlina.domain.run_sizes import OPTIMIZER_BYTES, smaller_budget
from merlina.domain.units import gib
from merlina.errors import TrainingError
from merlina.training.engine.packing import PackedExample
from merlina.training.engine.passes import PassPlanner
from merlina.training.loop.alarms import Notify
from merlina.training.loop.gpu_memory_limit import limited_gpu_memory
from merlina.training.loop.metrics import memory_metrics
from merlina.training.loop.pass_runner import PassRunner


@dataclass(frozen=True)
class MemoryProbe:
    """The trial of the largest pass that a run can make. `memory_limit` is in bytes for each GPU."""

    model: nn.Module
    runner: PassRunner
    memory_limit: int | None
    notify: Notify

    def fit(self, examples: Sequence[PackedExample]) -> PassPlanner:
        """Return a planner with passes over `examples` that fit into memory.

        The call leaves no gradients and restores the random state. Raises TrainingError if the largest example does not
        fit.
        """
        device = self.runner.packer.device
        self.model.train()
        examples = self.runner.planner.candidates_for_largest(examples, self.runner.packer.config.pairs_per_step)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            planner = self._fit(examples)
        positions = planner.batching.num_positions(planner.largest_pass(examples))
        held = memory_metrics()
        on_gpu = f" and {held['gpu_memory']:.2f} GiB of GPU memory" if "gpu_memory" in held else ""
        self.notify(
            "info",
            f"The largest forward pass has {positions:,} positions. After a trial of it, the run holds "
            f"{held['memory_gib']:.2f} GiB of RAM{on_gpu}",
        )
        return planner

    def _fit(self, examples: Sequence[PackedExample]) -> PassPlanner:
        """Stay within the memory that was reported before the run, unless not even the largest example fits into it."""
        planner = self.runner.planner
        try:
            with limited_gpu_memory(self.memory_limit):
                return find_fitting_planner(planner, examples, self._run, self.notify)
        except TrainingError:
            if self.memory_limit is None or planner.ranks.count > 1:
                raise
        torch.cuda.empty_cache()
        self.notify(
            "warning",
            f"The run needs more than the {gib(self.memory_limit)} of GPU memory that were reported before it began; "
            "it takes what it needs",
        )
        # A budget of 0 makes each example a pass of its own.
        return find_fitting_planner(replace(planner, budget=0), examples, self._run, self.notify)

    def _run(self, examples: Sequence[PackedExample]) -> None:
        """Run a forward and backward pass with everything in memory that a step holds."""
        config = self.runner.packer.config
        # The state of a paged optimizer moves out of GPU memory when passes need it.
        is_paged = config.optimizer_type.startswith("paged") and self.runner.packer.device.type == "cuda"
        state_bytes = 0.0 if is_paged else OPTIMIZER_BYTES[config.optimizer_type]
        with (
            hold_step_memory(self.model.parameters(), state_bytes, has_gradients=config.pairs_per_step > 1),
            self.runner.unchanged_weights(),
        ):
            self.runner.forward(examples).sums.sum().backward()


def find_fitting_planner(
    planner: PassPlanner,
    examples: Sequence[PackedExample],
    run: Callable[[Sequence[PackedExample]], None],
    notify: Notify,
) -> PassPlanner:
    """Return a planner with the first of a decreasing series of budgets for which `run`, one pass, has enough memory.

    All ranks end with the same budget. Raises TrainingError if not even the largest example fits, or, for ranks in
    lockstep, as soon as one rank runs out of memory, because the others wait for it inside a pass. On a CPU nothing is
    raised: the system kills a process that takes too much memory, and the server reports it.
    """
    largest = max(planner.batching.num_positions([example]) for example in examples)  # positions of the largest example
    while True:
        worst = planner.largest_pass(examples)
        fits = True
        try:
            run(worst)
        except torch.OutOfMemoryError as error:
            if planner.ranks_in_lockstep or planner.budget <= largest:
                raise TrainingError(_does_not_fit(worst, planner, largest)) from error
            fits = False
        # One rank without enough memory makes all of them try a smaller budget.
        if not planner.ranks.max(not fits):
            return planner
        torch.cuda.empty_cache()
        smaller = max(smaller_budget(planner.budget), largest)
        notify("info", f"{planner.budget:,} positions in one forward pass do not fit on the GPU; trying {smaller:,}")
        planner = replace(planner, budget=smaller)


@contextlib.contextmanager
def hold_step_memory(weights: Iterable[nn.Parameter], state_bytes: float, *, has_gradients: bool) -> Iterator[None]:
    """Hold the memory that a step's passes find occupied, inside this context.

    That is the optimizer's state, `state_bytes` for each trained weight, and the gradients of earlier passes.
    """
    # Gradients accumulate over the passes of a step, so all but its first pass find them.
    trained = [weight for weight in weights if weight.requires_grad]
    size = int(state_bytes * sum(weight.numel() for weight in trained))
    # Written, not only reserved: an operating system provides memory pages when they are first written.
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


def _does_not_fit(worst: Sequence[PackedExample], planner: PassPlanner, largest: int) -> str:
    if planner.budget > largest:
        positions = planner.batching.num_positions(worst)
        message = (
            f"{len(worst)} pairs in one pass, {positions:,} positions, do not fit on the GPU beside a shard of the "
            "model. In order of effect: gradient_checkpointing, use_4bit, a smaller batch_size or "
            "gradient_accumulation_steps, a smaller lora_r"
        )
    else:
        message = (
            f"The longest pair, {largest:,} positions with both answers, does not fit on the GPU. In order of effect: "
            f"gradient_checkpointing, use_4bit, a max_length below {largest // 2:,}, a smaller lora_r"
        )
    if not torch.cuda.is_available():
        return message
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.max_memory_allocated()
    return (
        f"{message}. The run held {gib(held)} of the card's {gib(total)} when it failed, and "
        f"{gib(total - free)} are in use in total: another process may occupy the rest"
    )
