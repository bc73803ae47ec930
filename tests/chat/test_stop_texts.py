from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from merlina.worker.chat.stop_texts import StopTexts

_LETTERS = st.text("ab", max_size=8)


@given(st.lists(_LETTERS, max_size=6), st.lists(_LETTERS.filter(bool), max_size=3))
def test_an_answer_ends_before_the_stop_text_that_is_complete_first(pieces: list[str], stops: list[str]) -> None:
    stop_texts = StopTexts(stops)
    passed_on = []
    for piece in pieces:
        passed_on.append(stop_texts.add(piece))
        if stop_texts.is_found:
            break
    else:
        passed_on.append(stop_texts.flush())
    text = "".join(pieces)
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert stop_texts.is_found == bool(ends)
    longest = max((len(stop) for stop in stops if ends and text[: ends[0]].endswith(stop)), default=0)
    assert "".join(passed_on) == (text[: ends[0] - longest] if ends else text)


def test_text_that_cannot_begin_a_stop_text_is_not_held_back() -> None:
    stop_texts = StopTexts(["END"])
    assert [stop_texts.add(piece) for piece in ("The E", "nd", " of", " EN")] == ["The ", "End", " of", " "]
    assert stop_texts.flush() == "EN"
