"""The private parts of transformers' Trainer that the loop relies on, and the bound that keeps them as tested."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import Trainer

from merlina.training.loop import trainer
from merlina.training.loop.trainer import PreferenceTrainer

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]


def test_the_loop_lists_what_it_overrides() -> None:
    overridden = {name for name in vars(PreferenceTrainer) if hasattr(Trainer, name) and not name.startswith("__")}
    listed = set(re.findall(r"^    (\w+)  +\S", trainer.__doc__ or "", re.MULTILINE)) & set(dir(Trainer))
    assert overridden == listed


def test_private_members_that_the_loop_uses_exist() -> None:
    assert {"resume_from_checkpoint"} <= set(inspect.signature(Trainer._load_from_checkpoint).parameters)
    assert "self._created_lr_scheduler = False" in inspect.getsource(Trainer)
    assert "self.model_accepts_loss_kwargs" in inspect.getsource(Trainer.training_step) + inspect.getsource(
        Trainer.compute_loss
    )


def test_transformers_is_bounded_to_the_minor_version_that_is_tested() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    (required,) = (one for one in map(Requirement, project["dependencies"]) if one.name == "transformers")
    installed = Version(transformers.__version__)
    assert installed.release[:2] == (5, 24)
    assert required.specifier.contains(installed)
    assert not required.specifier.contains(Version(f"{installed.major}.{installed.minor + 1}.0"))
