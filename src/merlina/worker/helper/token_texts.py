"""The text of each token; joined, the texts are the text that was encoded.

A token may hold only a part of a character, and has no text by itself. The tokenizer's offsets into the text are
therefore used, if it has them and they belong to these ids; otherwise tokens are decoded together.
"""

from __future__ import annotations

from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# Number of tokens that are decoded in front of a token, since its text may depend on them.
_CONTEXT = 4


def token_texts(tokenizer: Any, ids: list[int], text: str, before: str = "") -> list[str]:
    """Return the text of each of `ids`, the tokens of `text`, possibly truncated and with special tokens at both ends.

    `before` preceded the text when it was encoded. If a character spans several tokens, the first token has all of it
    and the others are empty. Example: ["é"] encoded as two byte tokens gives ["é", ""].
    """
    if getattr(tokenizer, "is_fast", False):
        for prefix in dict.fromkeys(("", before)):
            found = _by_offsets(tokenizer, ids, prefix, text)
            if found is not None:
                return found
    return _decoded(tokenizer, ids)


def _by_offsets(tokenizer: Any, ids: list[int], before: str, text: str) -> list[str] | None:
    """Return the texts by the tokenizer's offsets, or None if the text is encoded as other ids."""
    whole = before + text
    made = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    spans = [
        (token, start, end)
        for token, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True)
        if end > len(before)
    ]
    # A BOS and an end token may have been added, and the remaining tokens truncated at either end.
    for first, last in ((0, 0), (1, 0), (0, 1), (1, 1)):
        inner = ids[first : len(ids) - last]
        index = _index_of(inner, [token for token, _, _ in spans])
        if inner and index is not None:
            texts = _texts_between(whole, len(before), spans[index : index + len(inner)], starts_whole=index == 0)
            around = [tokenizer.decode([token]) for token in (*ids[:first], *ids[len(ids) - last :])]
            return [*around[:first], *texts, *around[first:]]
    return None


def _index_of(inner: list[int], made: list[int]) -> int | None:
    """Return the index of the ids among those of the whole text: at its start or end, since one end is truncated."""
    count = len(inner)
    if made[:count] == inner:
        return 0
    return len(made) - count if count <= len(made) and made[len(made) - count :] == inner else None


def _texts_between(whole: str, begin: int, spans: list[tuple[int, int, int]], *, starts_whole: bool) -> list[str]:
    """Return each token's text from the end of the preceding token to its own end, so that nothing is lost."""
    texts: list[str] = []
    reached = begin if starts_whole else max(begin, spans[0][1])
    for _, _, end in spans:
        texts.append(whole[reached : max(reached, end)])
        reached = max(reached, end)
    return texts


def _decoded(tokenizer: Any, ids: list[int]) -> list[str]:
    """Decode each token after those before it; the last token of a character has all of it, the others are empty."""
    texts: list[str] = []
    begin = 0
    for index in range(len(ids)):
        context = ids[max(0, begin - _CONTEXT) : begin]
        known = _decode(tokenizer, context)
        text = _decode(tokenizer, [*context, *ids[begin : index + 1]])[len(known) :]
        is_last = index == len(ids) - 1
        if text.endswith(_INCOMPLETE) and not is_last and index - begin < _CONTEXT:
            texts.append("")
        else:
            texts.append(text)
            begin = index + 1
    return texts


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
