"""Run all preflight checks of a configuration and collect their findings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from merlina.data.findings.messages import TRAINING_ONLY
from merlina.data.readers.sources import resolve_file
from merlina.domain.data_urls import FileLocation
from merlina.errors import BusyError, ForbiddenError, MerlinaError
from merlina.executors.chat_process import ChatProcess
from merlina.executors.helper_pools import HelperPools, Repo
from merlina.hardware.gpus import Gpu
from merlina.paths import AllowedPaths
from merlina.preflight import report as reports
from merlina.preflight.datasets import check_rows
from merlina.preflight.hub_access import check_repo
from merlina.preflight.machine import check_disk, check_gpus, check_merging, check_output, check_precision
from merlina.preflight.memory_check import check_memory
from merlina.preflight.models import (
    adapters,
    check_architecture,
    check_model,
    check_targets,
    check_tokenizer,
    check_tokens,
    model_repos,
)
from merlina.preflight.report import CheckResult, Report
from merlina.preflight.row_counts import RowCounts
from merlina.preflight.step_count import check_step_count, plan_steps
from merlina.preflight.time_estimate import estimate_time, find_earlier_run
from merlina.preflight.unused_settings import check_unused_settings
from merlina.preflight.upload import UploadCheck
from merlina.preflight.wandb import check_wandb
from merlina.schemas.datasets.config import DatasetConfig, DatasetPart
from merlina.schemas.inspection import DataFacts, ModelFacts, RunFacts
from merlina.schemas.operations import CountHubRows, ExamineRows, InspectRun, MeasureMatrixSpeed
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.validation import TimeEstimate
from merlina.settings import Settings
from merlina.storage.database import Database

_T = TypeVar("_T")
_INSPECTION_SECONDS = 90.0
_SPEED_SECONDS = 10.0
_HUB_SECONDS = 10.0


@dataclass(frozen=True)
class Preflight:
    """All checks, with the parts of the server that they depend on."""

    settings: Settings
    allowed: AllowedPaths
    helpers: HelperPools
    rows: RowCounts
    chat_process: ChatProcess
    list_gpus: Callable[[], Sequence[Gpu]]
    database: Database
    upload: UploadCheck = field(default_factory=UploadCheck)

    def check(self, config: TrainingConfig, closed: threading.Event | None = None) -> Report:
        """Run every check. `closed` is set once the client has disconnected.

        Raises ForbiddenError for a data set outside the allowed folders, BusyError if too many checks are waiting.
        """
        gpus = self.list_gpus()
        report = Report()
        report.results["settings_used"] = check_unused_settings(config)
        report.results["gpu_available"] = check_gpus(config, gpus)
        report.results["model_accessible"] = check_model(
            config.base_model, self.settings.hub_token(config.hf_token), self.helpers.hub_reachability
        )
        report.results["dataset_valid"] = self._resolve_dataset(config, report)
        additional = [self._check_part(config, part, report, closed) for part in _additional_parts(config)]
        if additional:
            report.results["sources_valid"] = _joined(additional)
        facts = self._inspect(config, report, closed)
        if facts is not None:
            report.results["model_supported"] = check_architecture(facts)
            report.results["layers_found"] = check_targets(config, facts.model) if facts.model else CheckResult()
            report.results["tokenizer_ready"] = check_tokenizer(facts, config.dataset.format.format_type)
        self._check_dataset(config, report, facts, closed)
        model = facts.model if facts else None
        report.adapters = adapters(config, model) if model else []
        if model is not None and report.data is not None:
            report.results["lengths_fit"] = check_tokens(config, model, report.data)
        report.results["precision_available"] = check_precision(config, gpus)
        report.results["vram_sufficient"], report.memory = check_memory(
            config, model, report.data, gpus, self.chat_process.reclaimable_mb
        )
        device = "cuda" if gpus else "cpu"
        report.results["merging_fits"] = check_merging(config, model, device)
        rows = self._count_rows(config, report, closed)
        report.results["steps_suffice"] = check_step_count(plan_steps(config, report.data, rows))
        report.time = self._estimate_time(config, report, model, rows, device, closed)
        report.results["disk_space_ok"] = check_disk(config, self.settings, model, device)
        report.results["output_free"] = check_output(self.settings.models_dir / config.output_name)
        report.results["upload_ready"] = self.upload.check(
            config, self.settings.hub_token(config.hf_token), self.helpers.hub_reachability
        )
        report.results["wandb_ready"] = check_wandb(config.use_wandb, self._wandb_key(config))
        return report

    def _resolve_dataset(self, config: TrainingConfig, report: Report) -> CheckResult:
        settings, source = self.settings, config.dataset.source
        try:
            report.dataset_file = resolve_file(source, settings.uploads_dir, self.allowed)
        except ForbiddenError:
            raise
        except MerlinaError as error:
            return reports.error("dataset", error.message)
        if report.dataset_file is None:
            token, hub = self.settings.hub_token(config.hf_token), self.helpers.hub_reachability
            return check_repo(str(source.repo_id), "dataset", "dataset.source.repo_id", token, hub)
        return CheckResult()

    def _check_part(
        self, config: TrainingConfig, part: DatasetPart, report: Report, closed: threading.Event | None
    ) -> CheckResult:
        """Check an additional source: that it can be read, and that its first rows can be used."""
        source, field = part.config.source, f"dataset.{part.location}"
        try:
            file = resolve_file(source, self.settings.uploads_dir, self.allowed)
            if file is None:
                token, hub = self.settings.hub_token(config.hf_token), self.helpers.hub_reachability
                access = check_repo(str(source.repo_id), "dataset", f"{field}.repo_id", token, hub)
                if access.passed:
                    report.files[part.location] = None
                return access
            operation = ExamineRows(
                config=config.without_secrets(), files={part.location: file}, max_row_mb=self.settings.max_row_size_mb
            )
            facts = self.helpers.reader_of(file).call(operation, closed=closed)
        except (BusyError, ForbiddenError):
            raise
        except MerlinaError as error:
            return reports.error(field, error.message.removeprefix(f"{field}: "))
        if part in config.dataset.eval_parts:
            kept = [finding for finding in facts.findings if finding.kind not in TRAINING_ONLY]
        else:
            # Balance is that of all sources together.
            kept = [finding for finding in facts.findings if finding.kind != "label_imbalance"]
        facts = facts.model_copy(update={"findings": kept})
        report.files[part.location] = file
        found = check_rows(facts, None)
        return CheckResult(found.passed, tuple(replace(finding, field=field) for finding in found.findings))

    def _inspect(self, config: TrainingConfig, report: Report, closed: threading.Event | None) -> RunFacts | None:
        """Have a helper inspect model and data; None if either is not accessible."""
        if not (report.results["model_accessible"].passed and report.results["dataset_valid"].passed):
            return None
        try:
            files = {config.dataset.training_parts[0].location: report.dataset_file, **report.files}
            operation = InspectRun(
                config=config.without_secrets(),
                files=files,
                token=self.settings.hub_token(config.hf_token),
                trust_remote_code=self.settings.trust_remote_code,
                max_row_mb=self.settings.max_row_size_mb,
            )
            return self.helpers.call(
                operation, self._repos(config), files=files.values(), timeout=_INSPECTION_SECONDS, closed=closed
            )
        except BusyError:
            raise
        except MerlinaError as error:
            message = f"Model and data could not be inspected before the run: {error.message}"
            report.results["inspected"] = reports.warning(None, message)
            return None

    def _repos(self, config: TrainingConfig) -> list[Repo]:
        sources = [part.config.source for part in (*config.dataset.training_parts, *config.dataset.eval_parts)]
        dataset_repos = [
            Repo("dataset", str(source.repo_id)) for source in sources if source.source_type == "huggingface"
        ]
        return [*model_repos(config.base_model, self.settings.trust_remote_code), *dataset_repos]

    def _check_dataset(
        self, config: TrainingConfig, report: Report, facts: RunFacts | None, closed: threading.Event | None
    ) -> None:
        if not report.results["dataset_valid"].passed:
            return
        if facts is not None:
            report.data, error = facts.data, facts.data_error
        elif report.dataset_file is not None:
            report.data, error = self._examine_without_tokenizer(config, report.dataset_file, closed)
        else:
            unread = ("dataset_valid: the data set exists, but its rows were not read",)
            found = report.results["dataset_valid"]
            report.results["dataset_valid"] = CheckResult(passed=False, findings=found.findings, not_checked=unread)
            return
        access, rows = report.results["dataset_valid"], check_rows(report.data, error)
        report.results["dataset_valid"] = CheckResult(rows.passed, access.findings + rows.findings)

    def _examine_without_tokenizer(
        self, config: TrainingConfig, file: FileLocation, closed: threading.Event | None
    ) -> tuple[DataFacts | None, str | None]:
        """Return the facts on the first rows of a file without token counts, or why they cannot be read."""
        try:
            operation = ExamineRows(
                config=config.without_secrets(),
                files={config.dataset.training_parts[0].location: file},
                max_row_mb=self.settings.max_row_size_mb,
            )
            return self.helpers.reader_of(file).call(operation, closed=closed), None
        except BusyError:
            raise
        except MerlinaError as error:
            return None, error.message

    def _estimate_time(
        self,
        config: TrainingConfig,
        report: Report,
        model: ModelFacts | None,
        rows: int | None,
        device: str,
        closed: threading.Event | None,
    ) -> TimeEstimate | None:
        return estimate_time(
            config,
            model,
            report.data,
            rows,
            device,
            find_earlier_run(self.database, config, device),
            lambda dtype, width: self.helpers.local.call(
                MeasureMatrixSpeed(dtype=dtype, width=width), timeout=_SPEED_SECONDS, closed=closed
            ),
            evaluation_rows=sum(self._count_part(config, part, closed) or 0 for part in config.dataset.eval_parts),
        )

    def _count_rows(self, config: TrainingConfig, report: Report, closed: threading.Event | None) -> int | None:
        """Return the number of rows that the run will train on in an epoch, by the weights of its sources.

        None if counting them would mean reading them all.
        """
        if report.data is None:
            return None
        parts = config.dataset.training_parts
        if len(parts) == 1 and report.data.all_rows:
            return round(report.data.rows * parts[0].weight)
        counts = [(self._count_part(config, part, closed), part.weight) for part in parts]
        known = [count * weight for count, weight in counts if count is not None]
        return round(sum(known)) if len(known) == len(counts) else None

    def _count_part(self, config: TrainingConfig, part: DatasetPart, closed: threading.Event | None) -> int | None:
        dataset = part.config
        file = _or_none(partial(resolve_file, dataset.source, self.settings.uploads_dir, self.allowed))
        if dataset.source.source_type == "huggingface":
            rows = self._ask_hub_for_rows(config, dataset, closed)
        elif file is not None:
            rows = _or_none(partial(self.rows.count_if_quick, dataset.source, file, closed))
        else:
            return None
        return rows if rows is None or dataset.max_samples is None else min(rows, dataset.max_samples)

    def _ask_hub_for_rows(
        self, config: TrainingConfig, dataset: DatasetConfig, closed: threading.Event | None
    ) -> int | None:
        operation = CountHubRows(config=dataset, token=self.settings.hub_token(config.hf_token))
        repos = [Repo("dataset", str(dataset.source.repo_id))]
        return _or_none(partial(self.helpers.call, operation, repos, timeout=_HUB_SECONDS, closed=closed))

    def _wandb_key(self, config: TrainingConfig) -> str | None:
        key = config.wandb_key or self.settings.wandb_api_key
        return key.get_secret_value() if key else None


def _additional_parts(config: TrainingConfig) -> list[DatasetPart]:
    """Return all sources but the first one to train on."""
    return [*config.dataset.training_parts[1:], *config.dataset.eval_parts]


def _joined(results: Sequence[CheckResult]) -> CheckResult:
    return CheckResult(
        all(result.passed for result in results),
        tuple(finding for result in results for finding in result.findings),
        not_checked=tuple(line for result in results for line in result.not_checked),
    )


def _or_none(count: Callable[[], _T]) -> _T | None:
    """Return a count or a file, or None on errors: other checks report what is wrong with the data set."""
    try:
        return count()
    except MerlinaError:
        return None
