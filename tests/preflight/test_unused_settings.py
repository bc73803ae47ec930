from __future__ import annotations

from typing import Any

import pytest

from merlina.preflight.unused_settings import check_unused_settings
from tests.preflight.facts import config


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"training_mode": "sft", "beta": 0.3}, ["beta"]),
        ({"training_mode": "sft"}, []),
        ({"training_mode": "dpo", "beta": 0.3, "simpo_gamma": 1.0}, ["simpo_gamma"]),
        ({"training_mode": "simpo", "beta": 2.0, "simpo_gamma": 1.0}, []),
        ({"training_mode": "dpo", "loss_type": "hinge", "nll_weight": 1.0, "ld_alpha": 0.5}, []),
        ({"use_lora": False, "use_4bit": False, "use_rslora": True, "use_dora": True}, ["use_rslora", "use_dora"]),
        ({"training_mode": "ipo", "loss_type": "hinge", "nll_weight": 1.0}, ["loss_type"]),
        ({"training_mode": "dpo", "loss_type": "hinge", "label_smoothing": 0.1}, ["label_smoothing"]),
        ({"training_mode": "dpo", "loss_type": ["hinge", "robust"], "label_smoothing": 0.1}, []),
        ({"training_mode": "dpo", "loss_type": "apo_zero", "dpop_weight": 5.0}, ["dpop_weight"]),
        ({"training_mode": "orpo", "nll_weight": 1.0, "length_normalize": True}, ["nll_weight", "length_normalize"]),
    ],
)
def test_a_setting_of_another_method_is_a_warning(changes: dict[str, Any], warned: list[str]) -> None:
    finding = check_unused_settings(config(**changes))
    assert finding.errors == ()
    assert [warning.split(":")[0] for warning in finding.warnings] == warned
