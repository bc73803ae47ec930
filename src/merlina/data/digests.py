"""Digests by which equal prompts and equal pairs are recognized, whatever whitespace surrounds their texts."""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from merlina.data.conversation import Pair


def prompt_digest(pair: Pair) -> int:
    return _digest([part for turn in pair.prompt for part in (turn.role, turn.content.strip())])


def pair_digest(pair: Pair, prompt: int) -> int:
    """Return the digest of a pair whose prompt has the digest `prompt`."""
    return _digest([f"{prompt:x}", *(turn.content.strip() for turn in pair.answers)])


def _digest(parts: Sequence[str]) -> int:
    return xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass"))
