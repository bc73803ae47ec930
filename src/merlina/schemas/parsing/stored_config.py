"""Reading stored configurations, which an earlier version of Merlina may have written.

Jobs' rows, run orders, saved configurations and imports all pass through here. Older forms keep their meaning; anything
else raises StoredConfigError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from merlina.errors import Finding, StoredConfigError
from merlina.schemas.parsing.validation_errors import describe
from merlina.schemas.training.config import TrainingConfig, upgrade

PartialConfig = dict[str, Any]


def read_stored_config(content: Mapping[str, Any], name: str) -> TrainingConfig:
    """Return a complete stored configuration. `name` identifies it in messages. Raises StoredConfigError."""
    try:
        return TrainingConfig.model_validate(_with_earlier_defaults(content))
    except ValidationError as error:
        raise _unreadable(name, describe(error, TrainingConfig)) from error


def read_stored_partial(content: Mapping[str, Any], name: str) -> PartialConfig:
    """Return a stored partial configuration in the current form. Raises StoredConfigError."""
    current = upgrade(dict(content))
    if problems := check_partial(current):
        raise _unreadable(name, problems)
    return current


def check_partial(config: PartialConfig) -> list[Finding]:
    """Return what is wrong with the fields that are given; others may be missing."""
    try:
        TrainingConfig.model_validate(config)
    except ValidationError as error:
        findings = zip(error.errors(include_url=False), describe(error, TrainingConfig), strict=True)
        return [finding for problem, finding in findings if problem["type"] != "missing"]
    return []


def _with_earlier_defaults(content: Mapping[str, Any]) -> PartialConfig:
    """Return a complete configuration in which settings that were added later have the values that applied before.

    Forms that `TrainingConfig` itself accepts, such as `training_mode` inside `dataset`, need no conversion here.
    """
    config = dict(content)
    if "lr_scheduler_cycles" not in config and config.get("lr_scheduler_type") == "cosine_with_restarts":
        # Before the setting existed, there was a single cycle, which equals `cosine`.
        config["lr_scheduler_type"] = "cosine"
    return {**_EARLIER_DEFAULTS, **config}


# If the default of a new setting changes what a run does, an entry here preserves the earlier behavior.
_EARLIER_DEFAULTS: PartialConfig = {"disable_dropout": False, "lr_scheduler_power": 1.0}


def _unreadable(name: str, problems: list[Finding]) -> StoredConfigError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return StoredConfigError(
        f"The configuration of {name} was stored by another version of Merlina and cannot be used by this one: "
        f"{problems[0]}{more}; use that version, or start a new run without this field"
    )
