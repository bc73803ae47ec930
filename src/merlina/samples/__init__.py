"""Preference pairs for the demo, which teach short, correct answers in the style of a wizard."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
PAIRS = FOLDER / "wizard_pairs.jsonl"
DEMO_CONFIG = FOLDER / "demo.yaml"

# Words that only the chosen answers contain, by which the effect of training is measured.
WIZARD_WORDS = ("scroll", "rune", "staff", "tower", "crystal ball", "spell book", "wizard", "cauldron", "wand", "magic")

# Held-out questions: none of them occurs in the pairs.
QUESTIONS = ("What is the capital of Italy?", "Why do birds migrate?", "How do I cook pasta?")


def has_wizard_words(answer: str) -> bool:
    """Return whether an answer contains one of the words that the pairs teach."""
    return any(word in answer.lower() for word in WIZARD_WORDS)
