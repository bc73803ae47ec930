"""Is a repository there on the Hub, and may we read it? Only its description is asked for."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import CachedRepoInfo, HfApi, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, GatedRepoError, HFValidationError, RepositoryNotFoundError

from merlina.preflight.findings import Finding

RepoKind = Literal["model", "dataset"]

_TIMEOUT_SECONDS = 10
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def check_repo(repo_id: str, kind: RepoKind, field: str, token: str | None) -> Finding:
    """`field` is the one of the configuration that names the repository. A cached one will do without the network."""
    try:
        HfApi(token=token).repo_info(repo_id, repo_type=kind, timeout=_TIMEOUT_SECONDS)
    except GatedRepoError:
        return _error(field, f"{repo_id!r} is gated; accept its terms on the Hub and give a hf_token of that account")
    except RepositoryNotFoundError:
        hint = "the hf_token given can't see it" if token else "if it is private, give a hf_token"
        return _error(field, f"there is no {kind} {repo_id!r} on the Hub, nor on this machine; {hint}")
    except HFValidationError as error:
        return _error(field, f"{repo_id!r} is no Hub id: {error}")
    except Exception as error:  # the Hub client lets errors of its HTTP library through, whichever that is
        if _is_cached(repo_id, kind):
            return Finding(warnings=(f"The Hub can't be reached; using {repo_id!r} from this machine's cache",))
        return _error(
            field,
            f"{repo_id!r} is not in this machine's cache, and the Hub can't be reached to look it up "
            f"({type(error).__name__}). Give a local one, or check the network",
        )
    return Finding()


def cached_tokenizers() -> set[str]:
    """Models of the Hub's cache on this machine whose tokenizer is there."""
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return set()
    return {repo.repo_id for repo in repos if repo.repo_type == "model" and _has_tokenizer(repo)}


def _has_tokenizer(repo: CachedRepoInfo) -> bool:
    return any(file.file_name in _TOKENIZER_FILES for revision in repo.revisions for file in revision.files)


def _is_cached(repo_id: str, kind: RepoKind) -> bool:
    try:
        return any(repo.repo_id == repo_id and repo.repo_type == kind for repo in scan_cache_dir().repos)
    except CacheNotFound:
        return False


def _error(field: str, message: str) -> Finding:
    return Finding(passed=False, errors=(f"{field}: {message}",))
