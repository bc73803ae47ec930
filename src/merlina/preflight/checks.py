"""All checks in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from merlina.data.sources import resolve_file
from merlina.errors import ForbiddenError, HelperError, MerlinaError
from merlina.executors.helper import Helper
from merlina.executors.talker import Talker
from merlina.hardware.gpus import Gpu
from merlina.paths import AllowedPaths
from merlina.preflight.datasets import judge_dataset, look_without_tokens
from merlina.preflight.duration import estimate_time, find_earlier_run
from merlina.preflight.findings import Finding, Report
from merlina.preflight.hub import check_repo
from merlina.preflight.machine import check_disk, check_gpus, check_merging, check_output, check_precision
from merlina.preflight.memory import check_memory
from merlina.preflight.method import check_method
from merlina.preflight.models import check_model, judge_lengths, judge_model, judge_targets, judge_tokenizer
from merlina.preflight.plan import check_plan, plan_steps
from merlina.preflight.rows import rows_soon_known
from merlina.preflight.upload import UploadCheck
from merlina.preflight.wandb import check_wandb
from merlina.schemas.inspection import ModelFacts, RunFacts
from merlina.schemas.training import TrainingConfig
from merlina.schemas.validation import TimeEstimate
from merlina.settings import Settings
from merlina.storage.database import Database

_INSPECTION_SECONDS = 90.0
_SPEED_SECONDS = 10.0
_HUB_SECONDS = 10.0


@dataclass(frozen=True)
class Preflight:
    """The checks with what they need to know of this server."""

    settings: Settings
    allowed: AllowedPaths
    helper: Helper
    talker: Talker
    list_gpus: Callable[[], Sequence[Gpu]]
    database: Database
    upload: UploadCheck = field(default_factory=UploadCheck)

    def check(self, config: TrainingConfig) -> Report:
        """Runs every check.

        Raises ForbiddenError for a data set outside the allowed folders, BusyError where too many wait to be checked.
        """
        gpus = self.list_gpus()
        report = Report()
        report.findings["settings_used"] = check_method(config)
        report.findings["gpu_available"] = check_gpus(config, gpus)
        report.findings["model_accessible"] = check_model(config.base_model, self._hub_token(config))
        report.findings["dataset_valid"] = self._find_dataset(config, report)
        facts = self._inspect(config, report)
        if facts is not None:
            report.findings["model_supported"] = judge_model(facts)
            report.findings["layers_found"] = judge_targets(config, facts.model) if facts.model else Finding()
            report.findings["tokenizer_ready"] = judge_tokenizer(facts, config.dataset.format.format_type)
        self._judge_dataset(config, report, facts)
        model = facts.model if facts else None
        if model is not None and report.data is not None:
            report.findings["lengths_fit"] = judge_lengths(config, model, report.data)
        report.findings["precision_available"] = check_precision(config, gpus)
        report.findings["vram_sufficient"], report.memory = check_memory(
            config, model, report.data, gpus, self.talker.gives_up
        )
        report.findings["merging_fits"] = check_merging(config, model, report.memory)
        if model is None:
            report.findings["vram_sufficient"] = Finding(
                passed=False, not_checked=("vram_sufficient: the model's size is unknown",)
            )
        device = "cuda" if gpus else "cpu"
        rows = self._count_rows(config, report)
        report.findings["steps_suffice"] = check_plan(plan_steps(config, report.data, rows))
        report.time = self._estimate_time(config, report, model, rows, device)
        report.findings["disk_space_ok"] = check_disk(config, self.settings, model, device)
        report.findings["output_free"] = check_output(self.settings.models_dir / config.output_name)
        report.findings["upload_ready"] = self.upload.check(config, self._hub_token(config))
        report.findings["wandb_ready"] = check_wandb(config.use_wandb, self._wandb_key(config))
        return report

    def _find_dataset(self, config: TrainingConfig, report: Report) -> Finding:
        settings, source = self.settings, config.dataset.source
        try:
            report.dataset_file = resolve_file(source, settings.uploads_dir, self.allowed)
        except ForbiddenError:
            raise
        except MerlinaError as error:
            return Finding(passed=False, errors=(f"dataset: {error.message}",))
        if report.dataset_file is None:
            return check_repo(str(source.repo_id), "dataset", "dataset.source.repo_id", self._hub_token(config))
        return Finding()

    def _inspect(self, config: TrainingConfig, report: Report) -> RunFacts | None:
        """The helper's look at model and data, where both are there."""
        if not (report.findings["model_accessible"].passed and report.findings["dataset_valid"].passed):
            return None
        try:
            found = self.helper.call(
                "inspect_run",
                timeout=_INSPECTION_SECONDS,
                config=config.without_secrets().model_dump(mode="json"),
                file=str(report.dataset_file) if report.dataset_file else None,
                token=self._hub_token(config),
                trust_remote_code=self.settings.trust_remote_code,
            )
        except HelperError as error:
            message = f"Model and data could not be looked into before the run: {error.message}"
            report.findings["inspected"] = Finding(passed=False, warnings=(message,))
            return None
        return RunFacts.model_validate(found)

    def _judge_dataset(self, config: TrainingConfig, report: Report, facts: RunFacts | None) -> None:
        if not report.findings["dataset_valid"].passed:
            return
        if facts is not None:
            report.data, error = facts.data, facts.data_error
        elif report.dataset_file is not None:
            report.data, error = look_without_tokens(config, report.dataset_file)
        else:
            unread = ("dataset_valid: the data set exists, but its rows were not read",)
            found = report.findings["dataset_valid"]
            report.findings["dataset_valid"] = Finding(passed=False, warnings=found.warnings, not_checked=unread)
            return
        found, judged = report.findings["dataset_valid"], judge_dataset(report.data, error)
        report.findings["dataset_valid"] = Finding(judged.passed, judged.errors, found.warnings + judged.warnings)

    def _estimate_time(
        self, config: TrainingConfig, report: Report, model: ModelFacts | None, rows: int | None, device: str
    ) -> TimeEstimate | None:
        return estimate_time(
            config,
            model,
            report.data,
            rows,
            device,
            find_earlier_run(self.database, config, device),
            lambda dtype, width: self.helper.call("product_rate", timeout=_SPEED_SECONDS, dtype=dtype, width=width),
        )

    def _count_rows(self, config: TrainingConfig, report: Report) -> int | None:
        """Of those a run would read; None where only reading them all would tell."""
        if report.data is None or report.data.all_rows:
            return report.data.rows if report.data else None
        dataset = config.dataset
        if report.dataset_file is None:
            rows = self._ask_hub_for_rows(config)
        else:
            rows = rows_soon_known(dataset.source, report.dataset_file, self.database)
        return min((count for count in (rows, dataset.max_samples) if count is not None), default=None)

    def _ask_hub_for_rows(self, config: TrainingConfig) -> int | None:
        asked = config.dataset.model_dump(mode="json")
        try:
            rows: int | None = self.helper.call(
                "count_hub_rows", timeout=_HUB_SECONDS, config=asked, token=self._hub_token(config)
            )
        except MerlinaError:
            # What is wrong with the data set is told by other checks; this is only for the estimate.
            return None
        return rows

    def _hub_token(self, config: TrainingConfig) -> str | None:
        token = config.hf_token or self.settings.hf_token
        return token.get_secret_value() if token else None

    def _wandb_key(self, config: TrainingConfig) -> str | None:
        key = config.wandb_key or self.settings.wandb_api_key
        return key.get_secret_value() if key else None
