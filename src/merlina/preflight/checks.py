"""All checks in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merlina.data.sources import resolve_file
from merlina.errors import ForbiddenError, MerlinaError
from merlina.hardware.gpus import Gpu
from merlina.paths import AllowedPaths
from merlina.preflight.datasets import check_dataset
from merlina.preflight.findings import Finding, Report
from merlina.preflight.machine import check_disk, check_gpus, check_memory, check_output
from merlina.preflight.models import check_model
from merlina.schemas.training import TrainingConfig
from merlina.settings import Settings


@dataclass(frozen=True)
class Preflight:
    """The checks with what they need to know of this server."""

    settings: Settings
    allowed: AllowedPaths
    list_gpus: Callable[[], Sequence[Gpu]]

    def check(self, config: TrainingConfig) -> Report:
        """Runs every check. Raises ForbiddenError for a data set outside the allowed roots."""
        settings, gpus = self.settings, self.list_gpus()
        report = Report()
        findings = report.findings
        findings["gpu_available"] = check_gpus(config, gpus)
        findings["vram_sufficient"] = check_memory(config, gpus)
        findings["disk_space_ok"] = check_disk([settings.data_dir, settings.models_dir])
        findings["model_accessible"] = check_model(config.base_model, self._hub_token(config))
        findings["dataset_valid"] = self._check_dataset(config, report)
        findings["output_free"] = check_output(settings.models_dir / config.output_name)
        findings["wandb_ready"] = self._check_wandb(config)
        return report

    def _check_dataset(self, config: TrainingConfig, report: Report) -> Finding:
        settings = self.settings
        try:
            report.dataset_file = resolve_file(config.dataset.source, settings.uploads_dir, self.allowed)
        except ForbiddenError:
            raise
        except MerlinaError as error:
            return Finding(passed=False, errors=(f"dataset: {error.message}",))
        return check_dataset(config.dataset, report.dataset_file, self._hub_token(config))

    def _check_wandb(self, config: TrainingConfig) -> Finding:
        if not config.use_wandb or config.wandb_key or self.settings.wandb_api_key:
            return Finding()
        return Finding(passed=False, warnings=("use_wandb: there is no wandb_key; the run goes on without it",))

    def _hub_token(self, config: TrainingConfig) -> str | None:
        token = config.hf_token or self.settings.hf_token
        return token.get_secret_value() if token else None
