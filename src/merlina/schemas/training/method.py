"""Settings of the training method and its loss (see `TrainingConfig`)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from merlina.schemas.base import RequestModel
from merlina.schemas.datasets.config import AnswersNeeded, TrainingMode, answers_needed
from merlina.schemas.parsing.validation_errors import at_field

MAX_LABEL_WEIGHT = 1000
MAX_LOSS_WEIGHT = 1000

LossType = Literal[
    "sigmoid", "robust", "hinge", "exo_pair", "discopop", "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard"
]


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

    loss_type: list[LossType] = Field(
        default_factory=lambda: list[LossType](["sigmoid"]),
        min_length=1,
        max_length=8,
        description="dpo: form of the loss, under the name that TRL has for it. Several are added with loss_weights.",
    )
    loss_weights: list[float] | None = Field(
        default=None, description="dpo: weight of each loss of loss_type, in its order. null: 1 for each."
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="dpo, simpo, cpo: probability that the answers of a pair are the wrong way round. Raise it to 0.1 "
        "for labels of low quality; exo_pair needs a value above 0, such as 0.001.",
    )
    nll_weight: float = Field(
        default=0.0,
        ge=0,
        le=MAX_LOSS_WEIGHT,
        description="dpo, ipo, simpo: weight of the chosen answer's negative log-likelihood per token, which is added "
        "to the loss (RPO alpha). Use 1 if chosen answers become less likely.",
    )
    dpop_weight: float = Field(
        default=0.0,
        ge=0,
        le=MAX_LOSS_WEIGHT,
        description="dpo: penalty for a chosen answer that becomes less likely than under the reference (lambda of "
        "DPO-positive). The paper uses 5 to 50.",
    )
    length_normalize: bool = Field(
        default=False,
        description="dpo: divide the log-probability of each answer by its number of tokens, so that long answers "
        "have no greater influence. Use a beta of 1 to 10.",
    )
    ld_alpha: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="dpo: weight of the tokens of the longer answer that lie beyond the length of the shorter one "
        "(LD-DPO). 0 ignores them, 1 and null are ordinary DPO.",
    )

    neftune_noise_alpha: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Strength of the random noise on the embeddings of training texts (NEFTune), which lessens "
        "overfitting: 5 to 15. Reference and evaluations have none. null: no noise.",
    )

    @field_validator("loss_type", mode="before")
    @classmethod
    def _may_be_one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _losses_are_consistent(self) -> Self:
        if len(set(self.loss_type)) < len(self.loss_type):
            raise at_field("loss_type", f"{', '.join(self.loss_type)} names a loss twice; use loss_weights instead")
        if self.loss_weights is not None:
            self._check_loss_weights(self.loss_weights)
        if self.training_mode == "dpo" and "exo_pair" in self.loss_type and self.label_smoothing == 0:
            raise at_field("label_smoothing", "must be above 0 for the loss exo_pair, such as 0.001")
        return self

    def _check_loss_weights(self, weights: list[float]) -> None:
        if len(weights) != len(self.loss_type):
            raise at_field(
                "loss_weights",
                f"has {len(weights)} weights for {len(self.loss_type)} losses in loss_type; give one each",
            )
        if any(not 0 < weight <= MAX_LOSS_WEIGHT for weight in weights):
            raise at_field("loss_weights", f"{weights} must be above 0 and at most {MAX_LOSS_WEIGHT}")

    @property
    def answers_needed(self) -> AnswersNeeded:
        """The answers that the method needs of each row."""
        return answers_needed(self.training_mode)
