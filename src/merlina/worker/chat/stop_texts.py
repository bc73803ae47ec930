"""Stop texts: an answer ends where one of them begins."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes on the text of an answer up to the first stop text, which may come in several pieces.

    Text that may be the beginning of a stop text is held back until it is clear whether it is. For example, with the
    stop text "END", `add("The E")` returns "The " and `add("nd")` returns "End".
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.is_found = False

    def add(self, piece: str) -> str:
        """Add a piece of text and return what can be passed on."""
        text, self._held = self._held + piece, ""
        # The stop text that is complete first counts, so that the division into pieces changes nothing.
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if found:
            self.is_found = True
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Return the text that is held back at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
