"""Messages of the findings with a fixed text, the most serious first.

The findings `length_bias` and `label_imbalance` build their own messages.
"""

from __future__ import annotations

from merlina.schemas.datasets.config import DatasetOption, FindingKind

# `of` is the number of rows, `prompts` and `answers` are numbers of truncated tokens, `columns` are names.
MESSAGES: dict[FindingKind, str] = {
    "unusable": "{count} of {of} rows cannot be used: {reasons}",
    "empty_side": "{count} of {of} rows lack a prompt or an answer and cannot be used: {reasons}",
    "differing_prompts": (
        "{count} of {of} rows have answers to different prompts, which cannot be compared: {reasons}"
    ),
    "dropped_duplicates": "{count} of {of} rows repeat an earlier one and are dropped (drop_duplicates)",
    "dropped_identical_answers": (
        "{count} of {of} rows have the same text as chosen and rejected and are dropped (drop_identical_answers)"
    ),
    "dropped_overlong": "{count} of {of} rows are longer than max_length and are dropped (drop_overlong)",
    "already_formatted": (
        "{count} of {of} rows already contain the markers of a chat format, to which this format adds its own: set "
        "format_type to raw to train them as they are, or remove the markers"
    ),
    "identical_answers": "{count} of {of} rows have the same text as chosen and rejected: they teach no preference",
    "same_after_truncation": (
        "{count} of {of} rows have answers that are the same once they are truncated, and teach no preference: raise "
        "max_length"
    ),
    "duplicates": "{count} of {of} rows repeat an earlier one: each copy adds weight in training",
    "evaluation_leak": (
        "{count} held-out pairs share their prompt with a training pair: the evaluation will be too optimistic"
    ),
    "markers_in_text": (
        "{count} of {of} rows contain markers of the chat format in their text, which end a turn too early"
    ),
    "system_dropped": (
        "in {count} of {of} rows the chat template does not render the system message as it is: set "
        "format.system_as_user to true to put it into the user's message"
    ),
    "reasoning_unused": (
        "{count} of {of} rows have reasoning that is not trained: use the format tokenizer or qwen3 and "
        "enable_thinking, or qwen3 if a chat template omits it from earlier turns of an answer"
    ),
    "thought_restored": (
        "{count} of {of} rows have reasoning that the chat template does not render once and closed in a finished "
        "turn: it is trained in front of the answer"
    ),
    "prompt_rearranged": (
        "in {count} of {of} rows the chat template renders the prompt differently once an answer follows: the prompt "
        "is trained as it is at generation time"
    ),
    "over_max_length": (
        "{count} of {of} rows are longer than max_length: {prompts} tokens are truncated from the beginning of prompts "
        "and {answers} from the end of answers"
    ),
    "parsed_from_text": "{count} of {of} rows contain messages or lists as text, which were parsed",
    "unused_columns": "there are columns of text that are not used: {columns}",
}

# Findings that concern training but no evaluation.
TRAINING_ONLY: frozenset[FindingKind] = frozenset({"label_imbalance", "length_bias"})

# The settings of a data set that resolve findings when they are true.
OPTIONS: dict[FindingKind, DatasetOption] = {
    "identical_answers": "drop_identical_answers",
    "same_after_truncation": "drop_overlong",
    "duplicates": "drop_duplicates",
    "system_dropped": "format.system_as_user",
    "over_max_length": "drop_overlong",
}
