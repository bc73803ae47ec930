"""The engine's error against float64 for tiny models of any family; `python -m tests.training.sweep` prints all.

The reference shares no code with the engine: a copy of the model in float64 runs its own forward pass on one text at a
time. Compared are the mean log-probabilities of the sections of each pair, and the gradients of a loss in which every
section has its own weight.
"""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from merlina.training.engine.fast_path import choose_logprob_model, shorten_for_trial
from merlina.training.engine.packing import Pack, PackedExample, build_pack
from tests.training.families import CANNOT, VOCABULARY, families, tiny_model

_DRAW = torch.Generator().manual_seed(3)
# Lengths of prompts and answers: a prompt of one token comes first; some texts are about six windows long.
_LENGTHS = [(1, 5, 9), (12, 20, 28), (25, 1, 3), (9, 30, 12)]


def _ids(count: int) -> list[int]:
    return torch.randint(3, VOCABULARY - 4, (count,), generator=_DRAW).tolist()


EXAMPLES = [PackedExample(_ids(prompt), tuple(_ids(answer) for answer in answers)) for prompt, *answers in _LENGTHS]
PACK = build_pack(EXAMPLES, with_prompt_targets=True)
_WEIGHTS = torch.tensor([0.3, 1.0, -0.7]) * torch.arange(1, 1 + len(EXAMPLES))[:, None]
# Routers are linear layers too, but their classes return more than one tensor.
_LINEAR = {"Linear", "Conv1D", "FalconLinear"}


@dataclass(frozen=True)
class Measured:
    """Errors against the reference: of mean log-probabilities in nats, of gradients relative to each weight's largest.

    `own_…` are the errors of the model's own forward pass in float32 on single texts, the least that float32 allows.
    """

    family: str
    reason: str | None
    logprobs: float
    gradients: float
    own_logprobs: float
    own_gradients: float

    def __str__(self) -> str:
        path = "packed" if self.reason is None else "own forward"
        own = f"own forward {self.own_logprobs:.1e} {self.own_gradients:.1e}"
        numbers = f"{self.logprobs:.1e} {self.gradients:.1e} ({own})"
        return f"{self.family:24} {path:11} {numbers} {self.reason or ''}"


def measure(family: str) -> Measured:
    """Raises what the model itself raises."""
    model = _adapted(tiny_model(family))
    exact, exact_gradients = _reference(_in_float64(model))
    own, own_gradients = _reference(model)
    model.zero_grad()
    long_trial = build_pack([*EXAMPLES[:1], shorten_for_trial(model.config, EXAMPLES[1])], with_prompt_targets=True)
    run, reason = choose_logprob_model(model, _short(), 0, "auto", nullcontext(), long_trial)
    found = run(PACK)
    means = found.sums / found.tokens.clamp(min=1)
    (means * _WEIGHTS).sum().backward()
    return Measured(
        family, reason,
        float((means - exact).abs().max()), _apart(_gradients(model), exact_gradients),
        float((own - exact).abs().max()), _apart(own_gradients, exact_gradients),
    )  # fmt: skip


def _short() -> Pack:
    """Return the beginnings of texts, as the trainer's short trial uses them."""
    return build_pack(
        [PackedExample(u.prompt[:6], tuple(a[:6] for a in u.answers)) for u in EXAMPLES[1:3]], with_prompt_targets=True
    )


def _adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    head = model.get_output_embeddings()
    # peft refuses these two if the model_type is in its list of state space models.
    targets = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in _LINEAR
        and module is not head
        and name.rsplit(".", 1)[-1] not in ("out_proj", "conv1d")
    ]
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    return get_peft_model(model, settings).eval()


def _in_float64(model: Any) -> Any:
    """Return a copy in float64, with float32 in parts whose own code does not support float64."""
    exact = copy.deepcopy(model).double()
    if exact.get_base_model()._can_set_experts_implementation():
        exact.get_base_model().set_experts_implementation("eager")
    try:
        with torch.no_grad():
            exact(input_ids=torch.tensor([EXAMPLES[0].prompt + EXAMPLES[0].answers[0]]), use_cache=False)
    except RuntimeError:
        return model
    return exact


def _reference(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean log-probabilities [U, 1 + A] and gradients, by the model's plain forward on one text after the other."""
    parts = []
    for example in EXAMPLES:
        by_text = [_of_text(model, example.prompt + answer) for answer in example.answers]
        begin = len(example.prompt) - 1
        parts.append([by_text[0][:begin].sum() / max(1, begin), *(logprobs[begin:].mean() for logprobs in by_text)])
    means = torch.stack([torch.stack(row) for row in parts])
    model.zero_grad()
    (means * _WEIGHTS).sum().backward()
    return means.detach(), _gradients(model)


def _of_text(model: Any, text: list[int]) -> Tensor:
    ids = torch.tensor([text])
    logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    result: Tensor = logprobs.gather(1, ids[0, 1:, None])[:, 0]
    return result


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in trained.items()}


def _apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Relative to a weight's largest gradient, or to a thousandth of the largest of all where that is larger."""
    least = 1e-3 * max(float(gradient.abs().max()) for gradient in exact.values())
    return max(
        float((found[name] - gradient).abs().max()) / max(float(gradient.abs().max()), least)
        for name, gradient in exact.items()
    )


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    for family in wanted or families():
        try:
            print(measure(family), flush=True)
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            print(f"{family:24} {CANNOT.get(family) or f'{type(error).__name__}: {first_line[:120]}'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
