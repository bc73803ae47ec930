"""The text of each token, so that all of them together are the text they were made from.

A token may hold a part of a character only: decoded by itself it is no text at all. So the tokenizer's own offsets into
the text are used, where it has them and they belong to these ids; otherwise tokens are decoded together.
"""

from __future__ import annotations

from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Decoded in front of a token: what a token's text is may depend on the one before it.
_CONTEXT = 4


def token_texts(tokenizer: Any, ids: list[int], text: str, before: str = "") -> list[str]:
    """Return the text of each of `ids`, which are tokens of `text`, maybe fewer and with special ones at both ends.

    `before` is what stands before the text where the ids were made. Of a character that spans several tokens, the first
    has all of it and the others are empty.
    """
    if getattr(tokenizer, "is_fast", False):
        for prefix in dict.fromkeys(("", before)):
            found = _by_offsets(tokenizer, ids, prefix, text)
            if found is not None:
                return found
    return _decoded(tokenizer, ids)


def _by_offsets(tokenizer: Any, ids: list[int], before: str, text: str) -> list[str] | None:
    """None where the text makes other ids than these."""
    whole = before + text
    made = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    spans = [
        (token, start, end)
        for token, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True)
        if end > len(before)
    ]
    # A BOS and an end token may have been added at either end, and the rest have been cut there.
    for first, last in ((0, 0), (1, 0), (0, 1), (1, 1)):
        inner = ids[first : len(ids) - last]
        place = _place_of(inner, [token for token, _, _ in spans])
        if inner and place is not None:
            texts = _texts_between(whole, len(before), spans[place : place + len(inner)], whole_end=place == 0)
            around = [tokenizer.decode([token]) for token in (*ids[:first], *ids[len(ids) - last :])]
            return [*around[:first], *texts, *around[first:]]
    return None


def _place_of(inner: list[int], made: list[int]) -> int | None:
    """Where the ids stand among those made: at the beginning or the end, since texts are cut at one end only."""
    count = len(inner)
    if made[:count] == inner:
        return 0
    return len(made) - count if count <= len(made) and made[len(made) - count :] == inner else None


def _texts_between(whole: str, begin: int, spans: list[tuple[int, int, int]], *, whole_end: bool) -> list[str]:
    """Each token's text goes from the end of the one before it to its own, so that nothing is lost in between."""
    texts: list[str] = []
    reached = begin if whole_end else max(begin, spans[0][1])
    for _, _, end in spans:
        texts.append(whole[reached : max(reached, end)])
        reached = max(reached, end)
    return texts


def _decoded(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token decoded behind the ones before it; those of an unfinished character are shown with its last one."""
    texts: list[str] = []
    begin = 0
    for place in range(len(ids)):
        context = ids[max(0, begin - _CONTEXT) : begin]
        known = _decode(tokenizer, context)
        text = _decode(tokenizer, [*context, *ids[begin : place + 1]])[len(known) :]
        is_last = place == len(ids) - 1
        if text.endswith(_UNFINISHED) and not is_last and place - begin < _CONTEXT:
            texts.append("")
        else:
            texts.append(text)
            begin = place + 1
    return texts


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
