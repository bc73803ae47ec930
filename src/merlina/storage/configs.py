"""Saved configurations: one JSON file each in DATA_DIR/configs, which users can read, copy and keep."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from merlina.errors import ConflictError, InvalidRequestError, NotFoundError, is_disk_full
from merlina.paths import read_small_file
from merlina.private_files import write_private
from merlina.schemas.configs import ConfigEntry, SavedConfig, check_name, without_tokens
from merlina.schemas.parsing.json_text import why_not_json
from merlina.schemas.parsing.stored_config import PartialConfig, check_partial, read_stored_partial

_log = logging.getLogger(__name__)
_MAX_FILE_BYTES = 1024**2


@dataclass(frozen=True)
class ConfigStore:
    """The configurations of one folder. Tokens are never written."""

    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def save(self, name: str, config: PartialConfig, description: str | None, tags: list[str] | None) -> Path:
        """Create or replace a configuration, keeping `created_at`. Raises InvalidRequestError for invalid fields."""
        problems = check_partial(config)
        if problems:
            findings = [replace(problem, field=f"config.{problem.field}") for problem in problems]
            raise InvalidRequestError("The configuration is not valid", findings)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            before = self._read(name)
            if before is None and os.path.lexists(self._path(name)):
                raise ConflictError(f"{self._path(name)} exists and is not a configuration; choose another name")
            saved = SavedConfig(
                name=name,
                description=description or "",
                tags=tags or [],
                created_at=before.created_at if before else now,
                updated_at=now,
                config=without_tokens(config),
            )
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self._path(name), _as_bytes(saved))
        return self._path(name)

    def get(self, name: str) -> SavedConfig:
        """Return a configuration in its current form. Raises NotFoundError or StoredConfigError."""
        saved = self._find(name)
        return saved.model_copy(update={"config": read_stored_partial(saved.config, f"{name!r}")})

    def entries(self, tag: str | None = None) -> list[ConfigEntry]:
        """Return all configurations by name. Files without one are skipped with a warning in the log."""
        found = [self._entry_or_warn(path) for path in sorted(self.folder.glob("*.json"))]
        return [entry for entry in found if entry is not None and (tag is None or tag in entry.tags)]

    def delete(self, name: str) -> None:
        """Delete a configuration. Raises NotFoundError."""
        self._find(name)
        self._path(name).unlink(missing_ok=True)

    def export(self, name: str, target: Path) -> None:
        """Write a configuration to a path. Raises InvalidRequestError if that would overwrite another kind of file."""
        saved = self.get(name)
        if target.suffix != ".json" or os.path.isdir(target):
            raise InvalidRequestError(f"output_path: {target} must name a file that ends in .json, such as {name}.json")
        if os.path.exists(target) and _parse(target) is None:
            raise InvalidRequestError(f"output_path: {target} exists and is not a configuration; choose another name")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_private(target, _as_bytes(saved))
        except OSError as error:
            if is_disk_full(error):
                raise
            raise InvalidRequestError(f"output_path: {target} cannot be written: {error.strerror}") from error

    def read_file(self, source: Path, name: str | None) -> tuple[str, SavedConfig]:
        """Read an exported or bare configuration; return it with the name to save it under.

        Raises NotFoundError and InvalidRequestError.
        """
        if not os.path.isfile(source):
            raise NotFoundError(f"There is no file {str(source)!r} on the server's machine")
        content = _read_json_object(source)
        saved = _as_saved(content) or SavedConfig(name=source.stem, created_at="", updated_at="", config=content)
        try:
            return check_name(name or saved.name), saved
        except ValueError as error:
            raise InvalidRequestError(f"name: {error}") from error

    def _find(self, name: str) -> SavedConfig:
        saved = self._read(name)
        if saved is not None:
            return saved
        if self._path(name).is_file():
            raise NotFoundError(
                f"{self._path(name)} does not contain a configuration that this version of Merlina can read"
            )
        raise _not_found(name)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, name: str) -> SavedConfig | None:
        try:
            check_name(name)
        except ValueError:
            raise _not_found(name) from None
        return _parse(self._path(name))

    def _entry_or_warn(self, path: Path) -> ConfigEntry | None:
        saved = _parse(path)
        if saved is None:
            _log.warning("%s does not contain a saved configuration and is not listed", path)
            return None
        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return ConfigEntry(**saved.model_dump(exclude={"config"}), filename=path.name, modified_at=modified)


def _as_bytes(saved: SavedConfig) -> bytes:
    return (json.dumps(saved.model_dump(), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _parse(path: Path) -> SavedConfig | None:
    """Return the configuration in a file; None if there is no such file or it contains something else."""
    try:
        return _as_saved(json.loads(read_small_file(path, _MAX_FILE_BYTES)))
    except (OSError, ValueError, RecursionError):
        return None


def _as_saved(content: object) -> SavedConfig | None:
    try:
        saved = SavedConfig.model_validate(content)
    except ValidationError:
        return None
    return saved.model_copy(update={"config": without_tokens(saved.config)})


def _read_json_object(path: Path) -> PartialConfig:
    try:
        content = json.loads(read_small_file(path, _MAX_FILE_BYTES))
    except OSError as error:
        raise InvalidRequestError(f"filepath: {path} cannot be read as a configuration: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"filepath: {path} {why_not_json(error)}") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"filepath: {path} does not contain a JSON object of fields")
    return content


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"Configuration {name[:100]!r} not found")
