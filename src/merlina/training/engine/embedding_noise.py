"""Noise on the embeddings of training texts (NEFTune, arXiv 2310.05914, algorithm 1), which lessens overfitting.

    embedding + alpha / sqrt(L H) * uniform(-1, 1)      for each of its H elements

L is the number of tokens of a text, H the hidden size. The texts of an example share their prompt, and with it the
prompt's noise, so L is that of the longest one, as in a batch of the example alone. Example: alpha = 5,
L = 100, H = 4,096 gives noise of up to 5 / 640 = 0.008 on embeddings with elements of about 0.02.

Each section has a generator of its own, seeded by the run's seed, the step, the number of the pair in the step and the
section. The noise therefore depends neither on how a step is divided into passes and ranks, nor on whether texts are
packed, nor on a resume.

Legend: N positions of a pack, R texts of a padded batch, T tokens of the longest of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from merlina.training.engine.packing import ExampleNoise, PackedExample


@dataclass(frozen=True)
class NoiseSource:
    """The noise of a run: its strength alpha and its seed."""

    alpha: float
    seed: int

    def on(self, example: PackedExample, step: int, index: int) -> PackedExample:
        """Return the example with noise, as the pair with this index in the optimizer step `step`."""
        seeds = tuple(_seed(self.seed, step, index, section) for section in range(1 + len(example.answers)))
        longest = len(example.prompt) + max(map(len, example.answers))
        return replace(example, noise=ExampleNoise(self.alpha, longest, seeds))


def _seed(*numbers: int) -> int:
    digest = blake2b(repr(numbers).encode(), digest_size=8)
    return int.from_bytes(digest.digest()) >> 1


@contextlib.contextmanager
def noisy_embeddings(causal_lm: Any, noise: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Add `noise`, a function of the embeddings, to the embeddings that the model looks up inside this context."""
    if noise is None:
        yield
        return
    add = noise

    def hook(_module: Any, _inputs: Any, embeddings: Tensor) -> Tensor:
        return embeddings + add(embeddings).to(embeddings.dtype)

    handle = causal_lm.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def noise_of_pack(examples: Sequence[PackedExample]) -> Callable[[Tensor], Tensor] | None:
    """Return the noise [1, N, H] for the layout of `build_pack`; None if the examples have none."""
    if not _have_noise(examples):
        return None

    def noise(embeddings: Tensor) -> Tensor:
        # The last token of an answer is not an input.
        parts = [
            part if number == 0 else part[:-1]
            for example in examples
            for number, part in enumerate(_sections(example, embeddings))
        ]
        return torch.cat(parts)[None]

    return noise


def noise_of_texts(texts: Sequence[PackedExample]) -> Callable[[Tensor], Tensor] | None:
    """Return the noise [R, T, H] for a padded batch of texts, examples with one answer; None if they have none."""
    if not _have_noise(texts):
        return None

    def noise(embeddings: Tensor) -> Tensor:
        whole = torch.zeros_like(embeddings, dtype=torch.float32)
        for row, text in zip(whole, texts, strict=True):
            both = torch.cat(_sections(text, embeddings))
            row[: len(both)] = both
        return whole

    return noise


def _have_noise(examples: Sequence[PackedExample]) -> bool:
    return all(example.noise is not None for example in examples)


def _sections(example: PackedExample, embeddings: Tensor) -> list[Tensor]:
    """Return the noise of each section of an example, [tokens, H] float32."""
    assert example.noise is not None
    alpha, width = example.noise.alpha, embeddings.shape[-1]
    scale = alpha / math.sqrt(example.noise.length * width)
    found = []
    for seed, tokens in zip(example.noise.seeds, (example.prompt, *example.answers), strict=True):
        generator = torch.Generator(embeddings.device).manual_seed(seed)
        uniform = torch.rand(len(tokens), width, generator=generator, device=embeddings.device)
        found.append((2 * uniform - 1) * scale)
    return found
