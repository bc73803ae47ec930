"""Rotary embeddings whose angles depend on the length of a text: each text gets those of its own length.

A rotary embedding turns position p of a text by the angles p * f, one for each frequency f (arXiv 2104.09864). Two
kinds choose their frequencies by the length T of the text (transformers.modeling_rope_utils.dynamic_rope_update):

- longrope (arXiv 2402.13753): one set of frequencies up to a limit L, another where T > L
- dynamic: above the model's maximum M, the base grows with T, so each length has frequencies of its own

transformers takes T from the furthest position of a whole pass, and the dynamic kind keeps the frequencies of its
longest pass for shorter ones after it. A pass of several texts would then give each what depends on the others.
Here a pass is divided into texts that agree on their frequencies, and the embedding is told their length:

    L = 100, texts of 80, 90, 130 tokens  ->  80 and 90 together, 130 by itself
    M = 100, texts of 80, 120, 130 tokens ->  each by itself

A prompt whose answers end on both sides of a limit is computed once for each of them; its own log-probability, where it
is trained on, is that of its first answer's text.

Legend: M targets of a pack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from merlina.training.engine.logprobs import LogprobModel, Logprobs, sum_by_section
from merlina.training.engine.packing import Pack, PackedExample, build_pack
from merlina.training.engine.passes import rope_kinds


class RotaryLengths:
    """Those rotary embeddings of a model whose angles depend on a text's length. Their forwards are replaced."""

    def __init__(self, causal_lm: Any) -> None:
        kinds = rope_kinds(causal_lm.config)
        longrope = [kind for kind in kinds if kind.get("rope_type") == "longrope"]
        self._limits = {kind["original_max_position_embeddings"] for kind in longrope}
        grows = any("dynamic" in (kind.get("rope_type") or "") for kind in kinds)
        self._grows_beyond = causal_lm.config.get_text_config().max_position_embeddings if grows else None
        self._length: int | None = None
        if self:
            for module in causal_lm.modules():
                if hasattr(module, "rope_type"):
                    self._replace_forward(module)

    def __bool__(self) -> bool:
        return bool(self._limits) or self._grows_beyond is not None

    def frequencies(self, length: int) -> tuple[int, int]:
        """Equal for two lengths whose texts have the same frequencies."""
        grown = length if self._grows_beyond is not None and length > self._grows_beyond else 0
        return sum(length > limit for limit in self._limits), grown

    @contextlib.contextmanager
    def of(self, length: int) -> Iterator[None]:
        """In which passes are computed with the frequencies of texts of this length."""
        self._length = length
        try:
            yield
        finally:
            self._length = None

    def _replace_forward(self, module: nn.Module) -> None:
        own = module.forward

        def forward(x: Tensor, position_ids: Tensor, *others: Any, **named: Any) -> Any:
            if self._length is None:
                return own(x, position_ids, *others, **named)
            # A short pass makes the dynamic kind forget its longest one.
            own(x, torch.zeros_like(position_ids[..., :1]), *others, **named)
            last = torch.full_like(position_ids[..., :1], self._length - 1)
            found = own(x, torch.cat((position_ids, last), dim=-1), *others, **named)
            if isinstance(found, Tensor):
                return found[..., :-1, :]
            return tuple(part[..., :-1, :] for part in found)

        module.forward = forward


class LengthGroupedModel:
    """Runs the texts of a pack in as many passes as they have different frequencies."""

    def __init__(self, run: LogprobModel, lengths: RotaryLengths) -> None:
        self.batching = run.batching
        self._run = run
        self._lengths = lengths

    def __call__(self, pack: Pack) -> Logprobs:
        return sum_by_section(pack, self.target_logprobs(pack))

    def target_logprobs(self, pack: Pack) -> Tensor:
        """-> [M]"""
        groups = self._groups(pack)
        if len(groups) == 1:
            with self._lengths.of(
                max(_length(example, answer) for example in pack.examples for answer in example.answers)
            ):
                return self._run.target_logprobs(pack)
        found, into = [], []
        for places in groups:
            of_group = self._run_alone(pack, places)
            targets = _targets(pack, places)
            found.append(of_group[[number for number, target in enumerate(targets) if target is not None]])
            into += [target for target in targets if target is not None]
        return torch.cat(found)[torch.tensor(into).argsort().to(pack.targets.device)]

    def _groups(self, pack: Pack) -> list[list[tuple[int, int]]]:
        """Texts of equal frequencies, each as the numbers of its example and answer."""
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for number, example in enumerate(pack.examples):
            for answer, tokens in enumerate(example.answers):
                groups.setdefault(self._lengths.frequencies(_length(example, tokens)), []).append((number, answer))
        return list(groups.values())

    def _run_alone(self, pack: Pack, places: list[tuple[int, int]]) -> Tensor:
        """As examples of one answer each."""
        examples = [
            PackedExample(pack.examples[example].prompt, (pack.examples[example].answers[answer],))
            for example, answer in places
        ]
        part = build_pack(examples, with_prompt_targets=pack.has_prompt_targets).to(pack.input_ids.device)
        with self._lengths.of(max(_length(example, example.answers[0]) for example in examples)):
            return self._run.target_logprobs(part)


def _targets(pack: Pack, places: list[tuple[int, int]]) -> list[int | None]:
    """Which of the pack's targets those of the given texts are; None for a prompt's that come from another text."""
    begins: dict[tuple[int, int], int] = {}
    at = 0
    for number, example in enumerate(pack.examples):
        begins[number, -1] = at
        at += _prompt_targets(pack, example)
        for answer, tokens in enumerate(example.answers):
            begins[number, answer] = at
            at += len(tokens)
    targets: list[int | None] = []
    for number, answer in places:
        example = pack.examples[number]
        prompt = range(begins[number, -1], begins[number, -1] + _prompt_targets(pack, example))
        targets += prompt if answer == 0 else [None] * len(prompt)
        targets += range(begins[number, answer], begins[number, answer] + len(example.answers[answer]))
    return targets


def _prompt_targets(pack: Pack, example: PackedExample) -> int:
    return len(example.prompt) - 1 if pack.has_prompt_targets else 0


def _length(example: PackedExample, answer: list[int]) -> int:
    return len(example.prompt) + len(answer)
