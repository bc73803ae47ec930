"""Reading stored configurations: known older forms are brought up to date, anything else is one clear sentence.

Jobs' rows, run orders, saved configurations and imports all pass through here. A configuration that was stored may have
been written by another version, unlike one that a client sends now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from merlina.errors import StoredConfigError
from merlina.schemas.problems import describe
from merlina.schemas.training import TrainingConfig

PartialConfig = dict[str, Any]


def read_stored_config(content: Mapping[str, Any], name: str) -> TrainingConfig:
    """Return the whole configuration that `name`, such as a job's id, was stored with. Raises StoredConfigError."""
    try:
        return TrainingConfig.model_validate(in_present_form(content))
    except ValidationError as error:
        raise _unreadable(name, describe(error, TrainingConfig)) from error


def read_stored_partial(content: Mapping[str, Any], name: str) -> PartialConfig:
    """Return part of a configuration as it was stored, in the present form. Raises StoredConfigError."""
    present = in_present_form(content)
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


def in_present_form(content: Mapping[str, Any]) -> PartialConfig:
    """Return a configuration with every known older form replaced; what is not known is left as it is."""
    config = dict(content)
    for bring_up_to_date in _OLDER_FORMS:
        config = bring_up_to_date(config)
    return config


def _method_inside_dataset(config: PartialConfig) -> PartialConfig:
    """`dataset.training_mode` became `training_mode`."""
    dataset = config.get("dataset")
    if not isinstance(dataset, dict) or "training_mode" not in dataset:
        return config
    rest = {name: value for name, value in dataset.items() if name != "training_mode"}
    method = dataset["training_mode"]
    return {**({} if method is None else {"training_mode": method}), **config, "dataset": rest}


def _empty_namespace(config: PartialConfig) -> PartialConfig:
    """`hf_namespace` became part of `output_name`; where it was empty, nothing is lost."""
    if "hf_namespace" in config and config["hf_namespace"] is None:
        return {name: value for name, value in config.items() if name != "hf_namespace"}
    return config


# One function for each change of form, the oldest first. A change of `TrainingConfig` by which an older configuration
# would be refused or would mean something else needs one here.
_OLDER_FORMS: tuple[Callable[[PartialConfig], PartialConfig], ...] = (_method_inside_dataset, _empty_namespace)


def _unreadable(name: str, problems: list[str]) -> StoredConfigError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return StoredConfigError(
        f"The configuration of {name} was stored by another version of Merlina and can't be used by this one: "
        f"{problems[0]}{more}; use that version, or start a new run without it"
    )
