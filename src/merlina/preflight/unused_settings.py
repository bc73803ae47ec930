"""Warn of settings that the chosen method or schedule does not use."""

from __future__ import annotations

from merlina.preflight.findings import Finding
from merlina.schemas.training import SchedulerType, TrainingConfig, TrainingMode

_COMPARING: tuple[TrainingMode, ...] = ("orpo", "dpo", "ipo", "simpo", "cpo", "kto")
_USED_BY: dict[str, tuple[TrainingMode, ...]] = {"beta": _COMPARING, "simpo_gamma": ("simpo",)}


_USED_BY_SCHEDULE: dict[str, SchedulerType] = {
    "lr_scheduler_cycles": "cosine_with_restarts",
    "lr_scheduler_power": "polynomial",
}


def check_unused_settings(config: TrainingConfig) -> Finding:
    """Return a warning for each changed setting that has no effect with this method or schedule."""
    unused = [
        f"{name}: training_mode {config.training_mode} does not use it, only {', '.join(methods)}"
        for name, methods in _USED_BY.items()
        if config.training_mode not in methods and _is_changed(config, name)
    ]
    unused += [
        f"{name}: lr_scheduler_type {config.lr_scheduler_type} does not use it, only {schedule}"
        for name, schedule in _USED_BY_SCHEDULE.items()
        if config.lr_scheduler_type != schedule and _is_changed(config, name)
    ]
    return Finding(passed=not unused, warnings=tuple(unused))


def _is_changed(config: TrainingConfig, name: str) -> bool:
    return bool(getattr(config, name) != type(config).model_fields[name].default)
