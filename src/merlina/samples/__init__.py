"""What the demo trains on: our own preference pairs, which teach short, correct answers with a touch of wizard."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
PAIRS = FOLDER / "wizard_pairs.jsonl"
DEMO_CONFIG = FOLDER / "demo.yaml"

# Words by which one sees the habit in an answer; no rejected answer has any of them.
WIZARD_WORDS = ("scroll", "rune", "staff", "tower", "crystal ball", "spell book", "wizard", "cauldron", "wand", "magic")

# None of these is among the pairs.
QUESTIONS = ("What is the capital of Italy?", "Why do birds migrate?", "How do I cook pasta?")


def has_wizard_words(answer: str) -> bool:
    """Whether an answer has the touch of wizard that the pairs teach."""
    return any(word in answer.lower() for word in WIZARD_WORDS)
