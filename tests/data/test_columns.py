from __future__ import annotations

import pytest

from merlina.data.columns import guess_mapping


@pytest.mark.parametrize(
    ("columns", "guessed"),
    [
        (["prompt", "chosen", "rejected"], {}),
        (["Question", "accepted", "other"], {"Question": "prompt", "accepted": "chosen"}),
        (
            ["question", "answer_good", "answer_bad"],
            {"question": "prompt", "answer_good": "chosen", "answer_bad": "rejected"},
        ),
        (
            ["userPrompt", "betterAnswer", "worseAnswer"],
            {"userPrompt": "prompt", "betterAnswer": "chosen", "worseAnswer": "rejected"},
        ),
        (
            ["prompt", "prompt_id", "score_chosen", "score_rejected", "the winning one", "a losing one"],
            {"the winning one": "chosen", "a losing one": "rejected"},
        ),
        (["good_1", "good_2", "badge"], {}),
    ],
)
def test_column_names_suggest_a_mapping(columns: list[str], guessed: dict[str, str]) -> None:
    assert guess_mapping(columns) == guessed
