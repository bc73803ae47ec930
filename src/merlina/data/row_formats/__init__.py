"""Formats of rows: detection of a data set's format, and conversion of its rows to standard rows.

A standard row has the keys that `data/pairs.py` reads: prompt (or conversations, conversation, messages), chosen,
rejected, system, reasoning; `tools` and `chat_template_kwargs` are passed on, and `label` states whether an unpaired
answer is good.
"""
