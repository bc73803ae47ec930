"""Does the method look at every setting that was given for it?"""

from __future__ import annotations

from merlina.preflight.findings import Finding
from merlina.schemas.training import TrainingConfig, TrainingMode

_COMPARING: tuple[TrainingMode, ...] = ("orpo", "dpo", "ipo", "simpo", "cpo", "kto")
_USED_BY: dict[str, tuple[TrainingMode, ...]] = {"beta": _COMPARING, "simpo_gamma": ("simpo",)}


def check_method(config: TrainingConfig) -> Finding:
    """A warning for each setting of another method that was changed: it does nothing."""
    unused = [
        f"{name}: training_mode {config.training_mode} doesn't use it, only {', '.join(methods)}"
        for name, methods in _USED_BY.items()
        if config.training_mode not in methods and getattr(config, name) != type(config).model_fields[name].default
    ]
    return Finding(passed=not unused, warnings=tuple(unused))
