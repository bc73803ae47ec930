"""Check that the run can log to Weights & Biases."""

from __future__ import annotations

import re
from importlib.util import find_spec

from merlina.preflight.report import CheckResult, warning

# 40 hexadecimal digits, or a longer key of the newer kind; keys of self-hosted servers start with `local-`.
_PLAUSIBLE_KEY = re.compile(r"(local-)?[A-Za-z0-9_-]{40,200}")


def check_wandb(use_wandb: bool, key: str | None) -> CheckResult:
    """Check that the package is installed and the key is well-formed, without contacting W&B."""
    if not use_wandb:
        return CheckResult(passed=None)
    if not key:
        return _without("there is no wandb_key")
    if find_spec("wandb") is None:
        return _without("the package wandb is not installed on the server")
    if not _PLAUSIBLE_KEY.fullmatch(key):
        return _without(f"the wandb_key has {len(key)} characters, but keys have 40 or more letters and digits")
    return CheckResult(not_checked=("wandb_ready: whether W&B accepts the wandb_key",))


def _without(reason: str) -> CheckResult:
    return warning("use_wandb", f"{reason}; the run continues without it")
