"""How the rows of data sets become pairs and text (see docs/datasets.md)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationError, WrapValidator, field_validator, model_validator

from merlina.schemas.base import RequestModel, Token
from merlina.schemas.datasets.sources import DatasetSource
from merlina.schemas.parsing.validation_errors import at_field

TrainingMode = Literal["orpo", "dpo", "simpo", "cpo", "ipo", "kto", "sft"]
FormatType = Literal["chatml", "llama3", "mistral", "qwen3", "tokenizer", "custom", "raw"]
PairColumn = Literal["prompt", "chosen", "rejected", "system", "reasoning", "completion", "label"]
AnswersNeeded = Literal["chosen", "both", "any"]
"""Answers that a method needs of each row: a chosen one, a chosen and a rejected one, or at least one of the two."""
PairsPerRow = Literal["best_worst", "all"]
SourceOrder = Literal["interleave", "concatenate"]
_EVALUATION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_RESERVED_NAMES = ("held_out", "eval_source")
RowFormat = Literal[
    "standard",
    "sharegpt",
    "messages",
    "hh_rlhf",
    "alpaca",
    "openai_preference",
    "orca_dpo",
    "argilla",
    "ultrafeedback",
    "rated_generations",
    "nectar",
    "helpsteer",
    "helpsteer_preference",
    "arena",
    "safe_rlhf",
    "stack_exchange",
    "shp",
    "unpaired",
    "prompt_completion",
    "question_answer",
]

RowFindingKind = Literal[
    "unusable",
    "empty_side",
    "differing_prompts",
    "dropped_duplicates",
    "dropped_identical_answers",
    "dropped_overlong",
    "identical_answers",
    "duplicates",
    "already_formatted",
    "markers_in_text",
    "prompt_rearranged",
    "system_dropped",
    "thought_restored",
    "reasoning_unused",
    "over_max_length",
    "same_after_truncation",
    "parsed_from_text",
]
"""Kinds of findings that a single row may have."""
FindingKind = Literal[RowFindingKind, "evaluation_leak", "unused_columns", "length_bias", "label_imbalance"]
"""Kinds of findings; those that are not of a single row concern the data set."""
RowFilter = Literal["findings", RowFindingKind]
"""Rows to show: those with a finding of any kind but parsed_from_text, or of one kind."""

DatasetOption = Literal["drop_duplicates", "drop_identical_answers", "drop_overlong", "format.system_as_user"]


def _with_one_source_per_column(mapping: dict[str, PairColumn] | None) -> dict[str, PairColumn] | None:
    targets = list((mapping or {}).values())
    twice = sorted({target for target in targets if targets.count(target) > 1})
    if twice:
        raise ValueError(f"more than one column is mapped to {', '.join(twice)}; map one")
    return mapping


class CustomTemplates(RequestModel):
    """Text that the format `custom` puts around each part of a conversation."""

    system_prefix: str = Field(default="", description="Text before the system message.")
    system_suffix: str = Field(default="", description="Text after the system message.")
    user_prefix: str = Field(default="", description="Text before each user message.")
    user_suffix: str = Field(default="", description="Text after each user message.")
    assistant_prefix: str = Field(default="", description="Text before each answer; also ends the prompt.")
    assistant_suffix: str = Field(
        default="", description="Text after each answer; the model learns to end its answer with it."
    )


class DatasetFormat(RequestModel):
    """How a conversation becomes the text that the model reads."""

    format_type: FormatType = Field(
        default="chatml",
        description="Chat format that turns each conversation into text. tokenizer: the chat template of the "
        "model's tokenizer. raw: none, for rows that are in a format already; only a missing BOS or end token is "
        "added.",
    )
    custom_templates: CustomTemplates | None = Field(
        default=None,
        description="custom: text before and after each part of a conversation. Ignored by the other formats.",
    )
    enable_thinking: bool = Field(
        default=True,
        description="qwen3: include the reasoning before each answer; false trains with empty reasoning. tokenizer: "
        "passed to the chat template; false omits the reasoning.",
    )
    system_as_user: bool = Field(
        default=False,
        description="Put each system message at the start of the user's next message, followed by an empty line, for "
        "models with a chat template that has no system role.",
    )

    @model_validator(mode="after")
    def _custom_needs_templates(self) -> Self:
        if self.format_type == "custom" and self.custom_templates is None:
            raise at_field("custom_templates", "required by format_type 'custom'")
        return self


class _SourceWithOptions(RequestModel):
    """A source, and what replaces the data set's settings for it."""

    source: DatasetSource = Field(description="Where the rows are.")
    column_mapping: dict[str, PairColumn] | None = Field(
        default=None, description="Like the `column_mapping` of the data set. null: use that one."
    )
    row_format: RowFormat | None = Field(
        default=None, description="Layout of the rows. null: that of the data set, otherwise detected."
    )
    max_samples: int | None = Field(
        default=None, ge=1, description="Maximum number of rows to read of this source. null: that of the data set."
    )

    @field_validator("column_mapping")
    @classmethod
    def _one_source_per_column(cls, value: dict[str, PairColumn] | None) -> dict[str, PairColumn] | None:
        return _with_one_source_per_column(value)


class SourceOptions(_SourceWithOptions):
    """One of several sources that are trained on together."""

    weight: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="How often each pair is trained on in an epoch: 0.5 uses a random half of the pairs, 2 each pair "
        "twice.",
    )


class EvaluationOptions(_SourceWithOptions):
    """A data set to evaluate on."""


def _with_options(given: Any, validate: Callable[[Any], EvaluationOptions]) -> EvaluationOptions:
    """Accept a source alone as one without options. Errors in it name its fields as they were given."""
    if isinstance(given, DatasetSource):
        return validate({"source": given})
    if not isinstance(given, dict) or "source" in given:
        return validate(given)
    misplaced = next((name for name in EvaluationOptions.model_fields if name in given), None)
    if misplaced is not None:
        raise at_field(misplaced, f'belongs beside source, as in {{"source": {{…}}, "{misplaced}": …}}')
    return validate({"source": DatasetSource.model_validate(given)})


EvaluationSource = Annotated[
    EvaluationOptions, WrapValidator(_with_options, json_schema_input_type=EvaluationOptions | DatasetSource)
]
"""A source, alone or with options; it is stored with options."""


def _source_of(options: Any) -> Any:
    """Return the source of one of several sources; a stand-in if it is not valid, which is reported once, there."""
    source = options.get("source") if isinstance(options, dict) else getattr(options, "source", None)
    try:
        return DatasetSource.model_validate(source)
    except ValidationError:
        return DatasetSource(source_type="local_file", file_path="invalid")


class DatasetPart(NamedTuple):
    """One source of a data set, as a data set of its own.

    `location` is its field in the configuration, such as `sources.1`; `name` is for people.
    """

    location: str
    name: str
    config: DatasetConfig
    weight: float = 1.0


def _require_source_or_sources(schema: dict[str, Any]) -> None:
    """Make the published schema require what is required: `source` or `sources`."""
    assert schema.pop("required") == ["source"]
    schema["anyOf"] = [
        {"required": ["source"]},
        {"required": ["sources"], "properties": {"sources": {"type": "array"}}},
    ]


class DatasetConfig(RequestModel):
    """A preference data set: where it is, how it is read and how much of it is held out."""

    model_config = ConfigDict(json_schema_extra=_require_source_or_sources)

    source: DatasetSource = Field(
        description="Where the rows are. With sources, it may be left out and is the first of them."
    )
    sources: list[SourceOptions] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Several sources to train on together. null: source alone.",
    )
    source_order: SourceOrder = Field(
        default="interleave",
        description="Order of several sources without shuffle_dataset. interleave: their pairs alternate in proportion "
        "to their numbers. concatenate: one source after the other.",
    )
    eval_source: EvaluationSource | None = Field(
        default=None,
        description="Data set to evaluate on, read with the same settings, or with options of its own. null: none.",
    )
    eval_sources: dict[str, EvaluationSource] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Several data sets to evaluate on, by name (up to 40 letters, digits, '.', '_' and '-'); each has "
        "metrics of its own, such as eval_loss/NAME. null: none.",
    )
    format: DatasetFormat = Field(default_factory=lambda: DatasetFormat())
    model_name: str | None = Field(
        default=None,
        min_length=1,
        description="Model with the chat template for a preview in the format tokenizer. Training uses base_model.",
    )
    column_mapping: dict[str, PairColumn] | None = Field(
        default=None,
        description="Mapping from the data set's column names to prompt, chosen, rejected, system and reasoning, or, "
        "for unpaired answers, completion and label. Columns that have these names need none.",
    )
    row_format: RowFormat | None = Field(
        default=None,
        description="Layout of the rows, after column_mapping. null: detected from the first rows, and shown in "
        "previews. Set it if the detection is wrong.",
    )
    pairs_per_row: PairsPerRow = Field(
        default="best_worst",
        description="Pairs from a row with several ranked or scored answers. best_worst: the best answer with the "
        "worst. all: each answer with every worse one. Answers with the same rank or score give no pair.",
    )
    strip: bool = Field(default=False, description="Remove whitespace at the beginning and end of every message.")
    default_system: str | None = Field(
        default=None, min_length=1, description="System message of rows that have none. null: none is added."
    )
    drop_duplicates: bool = Field(default=False, description="Drop rows that repeat an earlier one.")
    drop_identical_answers: bool = Field(
        default=False, description="Drop rows with the same text as chosen and rejected, which teach no preference."
    )
    drop_overlong: bool = Field(
        default=False, description="Drop rows that are longer than max_length instead of truncating them."
    )
    test_size: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Fraction of the pairs held out for evaluation; 0 holds out none. With only hundreds of pairs, use "
        "0.1. With eval_source or eval_sources, the default is 0.",
    )
    max_samples: int | None = Field(
        default=None, ge=1, description="Maximum number of rows to read, from the first row on. null: all."
    )
    training_mode: TrainingMode | None = Field(
        default=None,
        description="Only for a preview: with sft, rows without rejected answers are accepted, with kto also unpaired "
        "answers. For a run, set training_mode of the configuration.",
    )

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        derived: dict[str, Any] = {}
        sources = given.get("sources")
        if given.get("source") is None and isinstance(sources, list | tuple) and sources:
            derived["source"] = _source_of(sources[0])
        if given.get("eval_source") is not None or given.get("eval_sources") is not None:
            derived["test_size"] = 0.0
        return {**derived, **{name: value for name, value in given.items() if (name, value) != ("source", None)}}

    @field_validator("column_mapping")
    @classmethod
    def _one_source_per_column(cls, value: dict[str, PairColumn] | None) -> dict[str, PairColumn] | None:
        return _with_one_source_per_column(value)

    @field_validator("eval_sources")
    @classmethod
    def _have_names(cls, value: dict[str, EvaluationOptions] | None) -> dict[str, EvaluationOptions] | None:
        for name in value or {}:
            if not _EVALUATION_NAME.fullmatch(name):
                raise ValueError(
                    f"has the name {name[:100]!r}; use up to 40 letters, digits, '.', '_' and '-', a letter or digit "
                    "first"
                )
            if name in _RESERVED_NAMES:
                raise ValueError(f"has the name {name!r}, which Merlina uses itself; choose another one")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.sources is not None and self.source != self.sources[0].source:
            raise at_field("source", "differs from the first of sources; leave it out")
        if self.eval_source is not None and self.eval_sources is not None:
            raise at_field("eval_source", "is mutually exclusive with eval_sources; add it there by a name")
        return self

    @property
    def has_evaluation(self) -> bool:
        """Whether any pairs are evaluated on."""
        return self.test_size > 0 or bool(self.eval_parts)

    @property
    def num_sources(self) -> int:
        """The number of sources to train on and to evaluate on."""
        return len(self.training_parts) + len(self.eval_parts)

    @property
    def training_parts(self) -> list[DatasetPart]:
        """The sources to train on, each with its own settings."""
        if self.sources is None:
            return [DatasetPart("source", self.source.name, self)]
        return [
            DatasetPart(f"sources.{index}", one.source.name, self._part(one), one.weight)
            for index, one in enumerate(self.sources)
        ]

    @property
    def eval_parts(self) -> list[DatasetPart]:
        """The data sets to evaluate on, apart from the pairs that are held out."""
        named = [(f"eval_sources.{name}", name, options) for name, options in (self.eval_sources or {}).items()]
        if self.eval_source is not None:
            named.append(("eval_source", "eval_source", self.eval_source))
        return [DatasetPart(location, name, self._part(options)) for location, name, options in named]

    def _part(self, options: _SourceWithOptions) -> DatasetConfig:
        changes: dict[str, Any] = {"source": options.source, "sources": None, "eval_source": None, "eval_sources": None}
        for name in ("column_mapping", "row_format", "max_samples"):
            if getattr(options, name) is not None:
                changes[name] = getattr(options, name)
        return self.model_copy(update=changes)

    def with_sources(self, change: Callable[[DatasetSource], DatasetSource]) -> DatasetConfig:
        """Return the configuration with each source changed."""

        def changed(options: _SourceWithOptions) -> _SourceWithOptions:
            return options.model_copy(update={"source": change(options.source)})

        changes: dict[str, Any] = {"source": change(self.source)}
        if self.sources is not None:
            changes["sources"] = list(map(changed, self.sources))
        if self.eval_source is not None:
            changes["eval_source"] = changed(self.eval_source)
        if self.eval_sources is not None:
            changes["eval_sources"] = {name: changed(options) for name, options in self.eval_sources.items()}
        return self.model_copy(update=changes)


class DatasetRequest(DatasetConfig):
    """Body of `POST /dataset/preview`, `/dataset/preview-formatted` and `/dataset/columns`."""

    hf_token: Token | None = Field(
        default=None, description="Hugging Face token for gated or private data sets and models. Not stored."
    )


def answers_needed(training_mode: TrainingMode | None) -> AnswersNeeded:
    """Return the answers that a method needs; None stands for a method that compares pairs."""
    return "chosen" if training_mode == "sft" else "any" if training_mode == "kto" else "both"
