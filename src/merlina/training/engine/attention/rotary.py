"""Rotary embeddings with angles that depend on the length of a text: each text gets the angles of its own length.

A rotary embedding rotates position p of a text by the angles p * f, one for each frequency f (arXiv 2104.09864). Two
kinds choose their frequencies by the length T of the text (transformers.modeling_rope_utils.dynamic_rope_update):

- longrope (arXiv 2402.13753): one set of frequencies up to a limit L, another for T > L
- dynamic: beyond the model's maximum length, the base grows with T, so each length has its own frequencies

transformers derives T from the largest position id of a whole pass, and the dynamic kind keeps the frequencies of its
longest pass for shorter ones that follow. In a pass of several texts, the result of each would depend on the others.
Therefore texts that share a pass are divided into groups with equal frequencies, and the embedding receives the length
explicitly:

    longrope, limit 100, texts of 80, 90, 130 tokens      groups [80, 90], [130]
    dynamic, maximum 100, texts of 80, 120, 130 tokens    groups [80], [120], [130]

A prompt with answers that end on both sides of a limit is computed once for each side. Its own log-probability, if it
is trained on, comes from the text of the first answer.

Legend: M targets of a pack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from merlina.training.engine.attention.rope_config import rope_parameter_sets
from merlina.training.engine.logprobs import LogprobModel, Logprobs, sum_by_section
from merlina.training.engine.packing import Pack, PackedExample, build_pack

# The indices of an example in a pack and of one of its answers: together they name a text.
_Text = tuple[int, int]


class RotaryLengths:
    """The rotary embeddings of a model with angles that depend on a text's length. It is false if there are none.

    Creating the object replaces the forward methods of these embeddings.
    """

    def __init__(self, causal_lm: Any) -> None:
        parameter_sets = rope_parameter_sets(causal_lm.config)
        longrope = [parameters for parameters in parameter_sets if parameters.get("rope_type") == "longrope"]
        self._limits = {parameters["original_max_position_embeddings"] for parameters in longrope}
        is_dynamic = any("dynamic" in (parameters.get("rope_type") or "") for parameters in parameter_sets)
        self._grows_beyond = causal_lm.config.get_text_config().max_position_embeddings if is_dynamic else None
        self._length: int | None = None
        if self:
            for module in causal_lm.modules():
                if hasattr(module, "rope_type"):
                    self._replace_forward(module)

    def __bool__(self) -> bool:
        return bool(self._limits) or self._grows_beyond is not None

    def frequency_key(self, length: int) -> tuple[int, int]:
        """Return a key that is equal for two lengths if their texts have the same frequencies."""
        # Up to its maximum length, the dynamic kind has one set of frequencies for all texts.
        dynamic_length = length if self._grows_beyond is not None and length > self._grows_beyond else 0
        return sum(length > limit for limit in self._limits), dynamic_length

    @contextlib.contextmanager
    def fixed_to(self, length: int) -> Iterator[None]:
        """Compute passes with the frequencies of texts of `length` tokens inside this context."""
        self._length = length
        try:
            yield
        finally:
            self._length = None

    def _replace_forward(self, module: nn.Module) -> None:
        original = module.forward

        def forward(x: Tensor, position_ids: Tensor, *others: Any, **named: Any) -> Any:
            if self._length is None:
                return original(x, position_ids, *others, **named)
            # The dynamic kind only resets the frequencies of its longest pass on a pass within its maximum length.
            original(x, torch.zeros_like(position_ids[..., :1]), *others, **named)
            # An additional last position makes transformers derive the intended length; its result is dropped.
            last = torch.full_like(position_ids[..., :1], self._length - 1)
            result = original(x, torch.cat((position_ids, last), dim=-1), *others, **named)
            if isinstance(result, Tensor):
                return result[..., :-1, :]
            return tuple(tensor[..., :-1, :] for tensor in result)

        module.forward = forward


class LengthGroupedModel:
    """Runs a pack in one pass for each group of texts with equal frequencies."""

    def __init__(self, model: LogprobModel, lengths: RotaryLengths) -> None:
        self.batching = model.batching
        self._model = model
        self._lengths = lengths

    @property
    def is_dense(self) -> bool:
        """Whether the cost of the last pass grew with the square of its positions."""
        return self._model.is_dense

    def __call__(self, pack: Pack) -> Logprobs:
        return sum_by_section(pack, self.target_logprobs(pack))

    def target_logprobs(self, pack: Pack) -> Tensor:
        """Return the log-probability of each target, shape [M]."""
        groups = self._groups(pack)
        # The usual case: all texts agree, and the pack runs as it is.
        if len(groups) == 1:
            lengths = (_length(example, answer) for example in pack.examples for answer in example.answers)
            with self._lengths.fixed_to(max(lengths)):
                return self._model.target_logprobs(pack)
        logprobs, indices = [], []
        for texts in groups:
            group_logprobs = self._run_separately(pack, texts)
            targets = _target_indices(pack, texts)
            logprobs.append(group_logprobs[[number for number, target in enumerate(targets) if target is not None]])
            indices += [target for target in targets if target is not None]
        # Groups return their targets in their own order; argsort inverts it to the order of the pack.
        return torch.cat(logprobs)[torch.tensor(indices).argsort().to(pack.targets.device)]

    def unchanged_weights(self) -> contextlib.AbstractContextManager[None]:
        return self._model.unchanged_weights()

    def _groups(self, pack: Pack) -> list[list[_Text]]:
        """Return the texts of a pack, grouped by their frequencies."""
        groups: dict[tuple[int, int], list[_Text]] = {}
        for number, example in enumerate(pack.examples):
            for answer, tokens in enumerate(example.answers):
                key = self._lengths.frequency_key(_length(example, tokens))
                groups.setdefault(key, []).append((number, answer))
        return list(groups.values())

    def _run_separately(self, pack: Pack, texts: list[_Text]) -> Tensor:
        """Run these texts of a pack as a pack of their own. Returns its targets' log-probabilities, shape [targets]."""
        examples = [pack.examples[number].text(answer) for number, answer in texts]
        group = build_pack(examples, with_prompt_targets=pack.has_prompt_targets).to(pack.input_ids.device)
        with self._lengths.fixed_to(max(_length(example, example.answers[0]) for example in examples)):
            return self._model.target_logprobs(group)


def _target_indices(pack: Pack, texts: list[_Text]) -> list[int | None]:
    """Return which of the pack's targets each target of the given texts is.

    None marks a prompt target that is taken from another text, the one with the first answer.
    """
    begins: dict[_Text, int] = {}  # where each section's targets begin in the pack; answer -1 is the prompt
    # The order is that of `build_pack`: for each example the prompt's targets, then each answer's.
    at = 0
    for number, example in enumerate(pack.examples):
        begins[number, -1] = at
        at += _num_prompt_targets(pack, example)
        for answer, tokens in enumerate(example.answers):
            begins[number, answer] = at
            at += len(tokens)
    targets: list[int | None] = []
    for number, answer in texts:
        example = pack.examples[number]
        prompt = range(begins[number, -1], begins[number, -1] + _num_prompt_targets(pack, example))
        # Every text of a prompt computes the prompt's targets; those of the first answer are used.
        targets += prompt if answer == 0 else [None] * len(prompt)
        targets += range(begins[number, answer], begins[number, answer] + len(example.answers[answer]))
    return targets


def _num_prompt_targets(pack: Pack, example: PackedExample) -> int:
    return len(example.prompt) - 1 if pack.has_prompt_targets else 0


def _length(example: PackedExample, answer: list[int]) -> int:
    return len(example.prompt) + len(answer)
