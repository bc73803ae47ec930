"""Unrelated answers, from which KTO estimates how far the policy has moved from the reference (arXiv 2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence

from merlina.training.engine.packing import PackedExample


def unrelated_examples(examples: Sequence[PackedExample], max_length: int) -> list[PackedExample]:
    """Return each prompt with the chosen, or only, answer of the nearest preceding example that has another prompt.

    Texts are truncated to `max_length` tokens. Another answer to the same prompt would be related to it; only if all
    prompts are equal, the nearest different answer is used, and the example's own if all answers are equal. Example
    with pairs (prompt, answer) a1, a2, b3, where the first example follows the last (with wrap-around): the results are
    a3, a3, b2.
    """
    others = _nearest_others([example.prompt for example in examples]) or _nearest_others(
        [example.answers[0] for example in examples]
    )
    return [
        PackedExample(example.prompt, (examples[other].answers[0][: max_length - len(example.prompt)],))
        for example, other in zip(examples, others or range(len(examples)), strict=True)
    ]


def _nearest_others(texts: Sequence[list[int]]) -> list[int]:
    """Return for each text the index of the nearest different one before it, cyclically; empty if all are equal."""
    nearest = [-1] * len(texts)
    # The second round completes texts at the beginning that equal the texts before them, at the end of the list.
    for index in (*range(len(texts)), *range(len(texts))):
        before = (index - 1) % len(texts)
        nearest[index] = before if texts[before] != texts[index] else nearest[before]
    return nearest if -1 not in nearest else []
