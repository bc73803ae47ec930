"""Reading stored configurations: older forms are read as they were meant, anything else is one clear sentence.

Jobs' rows, run orders, saved configurations and imports all pass through here. A configuration that was stored may have
been written by another version, unlike one that a client sends now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from merlina.errors import StoredConfigError
from merlina.schemas.parsing.validation_errors import describe
from merlina.schemas.training import TrainingConfig, upgrade

PartialConfig = dict[str, Any]


def read_stored_config(content: Mapping[str, Any], name: str) -> TrainingConfig:
    """Return the whole configuration that `name`, such as a job's id, was stored with. Raises StoredConfigError."""
    try:
        return TrainingConfig.model_validate(_as_it_was_meant(content))
    except ValidationError as error:
        raise _unreadable(name, describe(error, TrainingConfig)) from error


def read_stored_partial(content: Mapping[str, Any], name: str) -> PartialConfig:
    """Return part of a configuration as it was stored, in the present form. Raises StoredConfigError."""
    present = upgrade(dict(content))
    if problems := check_partial(present):
        raise _unreadable(name, problems)
    return present


def check_partial(config: PartialConfig) -> list[str]:
    """Return what is wrong with the fields that are there, one line each; missing ones are no mistake."""
    try:
        TrainingConfig.model_validate(config)
    except ValidationError as error:
        lines = zip(error.errors(include_url=False), describe(error, TrainingConfig), strict=True)
        return [line for problem, line in lines if problem["type"] != "missing"]
    return []


def _as_it_was_meant(content: Mapping[str, Any]) -> PartialConfig:
    """Return a whole configuration in which settings that came later have the values that were in force before.

    What `TrainingConfig` accepts of older clients needs nothing here: `training_mode` inside `dataset`, for instance.
    """
    config = dict(content)
    if "lr_scheduler_cycles" not in config and config.get("lr_scheduler_type") == "cosine_with_restarts":
        # There was a single cycle, which is `cosine`.
        config["lr_scheduler_type"] = "cosine"
    return {**_BEFORE, **config}


# A new setting whose default changes what a run does needs the value here that keeps earlier runs as they were.
_BEFORE: PartialConfig = {"disable_dropout": False, "lr_scheduler_power": 1.0}


def _unreadable(name: str, problems: list[str]) -> StoredConfigError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return StoredConfigError(
        f"The configuration of {name} was stored by another version of Merlina and can't be used by this one: "
        f"{problems[0]}{more}; use that version, or start a new run without it"
    )
