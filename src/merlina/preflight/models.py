"""Is the base model there, and may we read it? Only its config is looked at, never its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from merlina.preflight.findings import Finding

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_TIMEOUT_SECONDS = 10


def check_model(base_model: str, token: str | None) -> Finding:
    """A local folder, a `.gguf` file or a Hub id."""
    path = Path(base_model).expanduser()
    if path.is_dir():
        return _check_folder(path)
    if base_model.lower().endswith(".gguf"):
        return _check_gguf(path)
    if _looks_like_path(base_model) or not _HUB_ID.fullmatch(base_model):
        return _error(
            f"base_model: there is no folder or .gguf file {base_model!r} here, and it is no Hub id (org/name) either"
        )
    return _check_hub(base_model, token)


def _looks_like_path(base_model: str) -> bool:
    return base_model.startswith(("/", "./", "../", "~")) or base_model.count("/") > 1


def _check_folder(path: Path) -> Finding:
    config = path / "config.json"
    if not config.is_file():
        return _error(f"base_model: the folder {path} has no config.json, so it holds no transformers model")
    try:
        json.loads(config.read_bytes())
    except ValueError as error:
        return _error(f"base_model: {config} is no valid JSON ({error})")
    if not any(file for pattern in _WEIGHTS for file in path.glob(pattern)):
        return _error(f"base_model: the folder {path} has no weights (*.safetensors)")
    return Finding()


def _check_gguf(path: Path) -> Finding:
    if not path.is_file():
        return _error(f"base_model: there is no file {str(path)!r} on this machine")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return _error(f"base_model: {path} is not a GGUF file, whatever its name says")
    return Finding()


def _check_hub(repo_id: str, token: str | None) -> Finding:
    try:
        HfApi(token=token).model_info(repo_id, timeout=_TIMEOUT_SECONDS)
    except GatedRepoError:
        return _error(
            f"base_model: {repo_id!r} is gated; accept its terms on the Hub and give a hf_token of that account"
        )
    except RepositoryNotFoundError:
        hint = "the hf_token given can't see it" if token else "if it is private, give a hf_token"
        return _error(f"base_model: there is no model {repo_id!r} on the Hub, nor a folder of that name here; {hint}")
    except HFValidationError as error:
        return _error(f"base_model: {repo_id!r} is no Hub id: {error}")
    except Exception as error:  # the Hub client lets errors of its HTTP library through, whichever that is
        return _check_cache(repo_id, error)
    return Finding()


def _check_cache(repo_id: str, error: Exception) -> Finding:
    if isinstance(try_to_load_from_cache(repo_id, "config.json"), str):
        return Finding(warnings=(f"The Hub can't be reached; using {repo_id!r} from this machine's cache",))
    return _error(
        f"base_model: {repo_id!r} is not in this machine's cache, and the Hub can't be reached to look it up "
        f"({type(error).__name__}). Give a local folder or a .gguf file, or check the network"
    )


def _error(message: str) -> Finding:
    return Finding(passed=False, errors=(message,))
