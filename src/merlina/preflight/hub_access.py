"""Check that a Hub repository exists and is readable, without downloading anything."""

from __future__ import annotations

from huggingface_hub import CachedRepoInfo, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, HFValidationError

from merlina.hub_errors import describe_hub_error, is_access_denied
from merlina.hub_reachability import HubReachability
from merlina.hub_repositories import RepoKind, check_access
from merlina.preflight.report import CheckResult, error, warning

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def check_repo(repo_id: str, kind: RepoKind, field: str, token: str | None, hub: HubReachability) -> CheckResult:
    """Check access to a repository; `field` is the configuration field that names it.

    Without a connection to the Hub, a cached repository passes with a warning.
    """
    problem = hub.problem()
    if problem is not None and not constants.is_offline_mode():
        if _is_cached(repo_id, kind):
            return warning(None, f"{problem}; using {repo_id!r} from this machine's cache", passed=True)
        return error(field, f"{problem}, and {repo_id!r} is not in this machine's cache")
    try:
        check_access(repo_id, kind, token)
    except HFValidationError:
        return error(field, f"{repo_id!r} is neither a folder or file on this machine nor a Hub id (org/name)")
    except Exception as refusal:  # the Hub's client raises errors of the HTTP library that it uses
        if not is_access_denied(refusal) and _is_cached(repo_id, kind):
            return warning(None, f"The Hub cannot be reached; using {repo_id!r} from this machine's cache", passed=True)
        message = describe_hub_error(refusal, repo_id, kind, token_given=token is not None)
        return error(
            field, message or f"{repo_id!r} cannot be looked up on the Hub ({type(refusal).__name__}); try again later"
        )
    return CheckResult()


def cached_tokenizers() -> set[str]:
    """Return the models with a tokenizer in this machine's cache of the Hub."""
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
