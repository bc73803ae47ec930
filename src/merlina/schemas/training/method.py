"""Settings of the training method and its loss (see `TrainingConfig`)."""

from __future__ import annotations

from pydantic import Field

from merlina.schemas.base import RequestModel
from merlina.schemas.datasets.config import AnswersNeeded, TrainingMode, answers_needed

MAX_LABEL_WEIGHT = 1000


class MethodFields(RequestModel):
    """Settings of the training method and its loss."""

    training_mode: TrainingMode = Field(
        default="orpo",
        description="Training method. dpo, ipo and kto use the initial model as the reference; sft learns from the "
        "chosen answers alone.",
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="orpo: weight of the odds-ratio loss (lambda in the paper). Other methods: scale of the "
        "rewards; lower values let the model move further from its reference. Not used by sft.",
    )
    simpo_gamma: float = Field(
        default=0.5, ge=0, le=10, description="simpo: target reward margin of the chosen over the rejected answer."
    )
    desirable_weight: float = Field(
        default=1.0,
        gt=0,
        le=MAX_LABEL_WEIGHT,
        description="kto: weight of the loss of chosen answers and of those labeled true.",
    )
    undesirable_weight: float = Field(
        default=1.0,
        gt=0,
        le=MAX_LABEL_WEIGHT,
        description="kto: weight of the loss of rejected answers and of those labeled false. Raise it if there are "
        "many more answers labeled true.",
    )

    @property
    def answers_needed(self) -> AnswersNeeded:
        """The answers that the method needs of each row."""
        return answers_needed(self.training_mode)
