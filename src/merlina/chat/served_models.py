"""The models that requests can name: finished models, by name or job id, and their base models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merlina.errors import NotFoundError
from merlina.schemas.chat import Side
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import SavedModel


@dataclass(frozen=True)
class NamedModel:
    """One side of a job's model. `parent` is the base model of a tuned model; None for a base model."""

    name: str
    job_id: str
    side: Side
    saved_at: float
    parent: str | None


@dataclass(frozen=True)
class ModelNames:
    """Finds models by name. Of several jobs with the same name, the last one that saved a model counts."""

    database: Database

    def all(self) -> list[NamedModel]:
        """Return all models that can be named, newest first; base models come last."""
        existing = list(self._existing())
        named: dict[str, NamedModel] = {}
        for model in [*(_tuned(each, each.output_name) for each in existing), *map(_base, existing)]:
            named.setdefault(model.name, model)
        return list(named.values())

    def find(self, name: str, loaded_with_base: str | None = None) -> NamedModel:
        """Return the model of this name, job id or base model. Raises NotFoundError.

        Several jobs may have the same base model: the loaded one is preferred, then the newest one with an adapter,
        because a fully trained model would be loaded in addition to the base model.
        """
        candidates = list(self._existing(name))
        for model in candidates:
            if name in (model.output_name, model.job_id):
                return _tuned(model, name)
        if not candidates:
            raise NotFoundError(
                f"There is no finished model {name[:200]!r}, nor one trained from it; GET /v1/models lists all"
            )
        return _base(
            min(candidates, key=lambda each: (each.job_id != loaded_with_base, not has_adapter(Path(each.output_dir))))
        )

    def _existing(self, name: str | None = None) -> Iterator[SavedModel]:
        """Yield the models whose folder exists, newest first, each folder with the last job that saved there."""
        with self.database.read() as connection:
            saved = jobs.saved_models(connection, name)
        return (model for model in saved if Path(model.output_dir).is_dir())


def _tuned(model: SavedModel, name: str) -> NamedModel:
    return NamedModel(name, model.job_id, "tuned", model.saved_at, model.base_model)


def _base(model: SavedModel) -> NamedModel:
    return NamedModel(model.base_model, model.job_id, "base", model.saved_at, None)


def has_adapter(model_dir: Path) -> bool:
    """Return whether the folder contains an adapter, which is loaded together with its base model."""
    return (model_dir / "adapter_config.json").is_file()
