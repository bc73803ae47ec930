"""Warn about settings that the chosen method or schedule does not use."""

from __future__ import annotations

from merlina.errors import Finding
from merlina.preflight.report import CheckResult
from merlina.schemas.datasets.config import TrainingMode
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.method import LossType
from merlina.schemas.training.steps import SchedulerType

_COMPARING: tuple[TrainingMode, ...] = ("orpo", "dpo", "ipo", "simpo", "cpo", "kto")
_USED_BY: dict[str, tuple[TrainingMode, ...]] = {
    "beta": _COMPARING,
    "simpo_gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "loss_type": ("dpo",),
    "loss_weights": ("dpo",),
    "label_smoothing": ("dpo", "simpo", "cpo"),
    "nll_weight": ("dpo", "ipo", "simpo"),
    "dpop_weight": ("dpo",),
    "length_normalize": ("dpo",),
    "ld_alpha": ("dpo",),
}
_USED_BY_LOSS: dict[str, tuple[LossType, ...]] = {
    "label_smoothing": ("sigmoid", "robust", "exo_pair"),
    "dpop_weight": ("sigmoid", "robust", "hinge", "exo_pair", "discopop"),
}
_USED_BY_ADAPTERS = ("use_rslora", "use_dora", "modules_to_save")
_USED_BY_SCHEDULE: dict[str, SchedulerType] = {
    "lr_scheduler_cycles": "cosine_with_restarts",
    "lr_scheduler_power": "polynomial",
}


def check_unused_settings(config: TrainingConfig) -> CheckResult:
    """Return a warning for each changed setting that has no effect with this method or schedule."""
    unused = [
        Finding(f"training_mode {config.training_mode} does not use it, only {', '.join(methods)}", name, "warning")
        for name, methods in _USED_BY.items()
        if config.training_mode not in methods and _is_changed(config, name)
    ]
    unused += [
        Finding(f"loss_type {', '.join(config.loss_type)} does not use it, only {', '.join(losses)}", name, "warning")
        for name, losses in _USED_BY_LOSS.items()
        if config.training_mode == "dpo" and not set(losses) & set(config.loss_type) and _is_changed(config, name)
    ]
    unused += [
        Finding("use_lora false trains no adapters, so that it is not used", name, "warning")
        for name in _USED_BY_ADAPTERS
        if not config.use_lora and _is_changed(config, name)
    ]
    unused += [
        Finding(f"lr_scheduler_type {config.lr_scheduler_type} does not use it, only {schedule}", name, "warning")
        for name, schedule in _USED_BY_SCHEDULE.items()
        if config.lr_scheduler_type != schedule and _is_changed(config, name)
    ]
    unused += [
        Finding("eval_steps 0 disables evaluation, so that it is not used", f"dataset.{part.location}", "warning")
        for part in config.dataset.eval_parts
        if config.eval_steps == 0
    ]
    return CheckResult(passed=not unused, findings=tuple(unused))


def _is_changed(config: TrainingConfig, name: str) -> bool:
    return bool(getattr(config, name) != type(config).model_fields[name].get_default(call_default_factory=True))
