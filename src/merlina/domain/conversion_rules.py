"""Versions of the rules by which rows become pairs.

A run records the version in its `data.json`. A resume converts the rows by the same version, so that it trains on the
pairs that the run started with, even if a newer version of Merlina can use more rows.
"""

from __future__ import annotations

# A row with an answer of several turns is skipped. Runs that recorded no version follow these rules.
FIRST_RULES = 1
# Such a row is trained. Turns that both answers share belong to the answers if they follow the row's own prompt, and to
# the prompt if they begin by repeating it.
ANSWERS_OF_SEVERAL_TURNS = 2

CURRENT_RULES = ANSWERS_OF_SEVERAL_TURNS
