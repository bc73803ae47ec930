"""Digests of 64 bits that identify equal prompts and equal pairs; whitespace around their texts does not count."""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from merlina.data.conversation import Message, Pair


def prompt_digest(pair: Pair) -> int:
    """Return the digest of a pair's prompt and its tools."""
    tools = [repr(pair.tools)] if pair.tools else []
    return _digest([*tools, *(part for turn in pair.prompt for part in (turn.role, *_parts(turn)))])


def pair_digest(pair: Pair, prompt: int) -> int:
    """Return the digest of a pair, given that of its prompt."""
    # The same answer with the other label is another pair, and so is the same pair rendered with other arguments.
    label = ["rejected"] if pair.chosen is None else []
    arguments = [repr(pair.template_arguments)] if pair.template_arguments else []
    return _digest([f"{prompt:x}", *label, *arguments, *(part for turn in pair.answers for part in _parts(turn))])


def _parts(turn: Message) -> list[str]:
    others = (turn.reasoning, turn.tool_calls)
    own = [turn.content.strip(), repr(others)] if any(others) else [turn.content.strip()]
    return [*(part for each in turn.earlier for part in (each.role, *_parts(each))), *own] if turn.earlier else own


def _digest(parts: Sequence[str]) -> int:
    return xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass"))
