"""Describe the errors of huggingface_hub to users."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The client reexports the HTTP library that its version is built on: httpx or its successor.
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from merlina.hub_repositories import RepoKind

# Why the Hub is currently unreachable; set while a call works offline, from this machine's cache.
HUB_PROBLEM: ContextVar[str | None] = ContextVar("hub_problem", default=None)
_NAMES: dict[RepoKind, str] = {"model": "model", "dataset": "data set"}


def is_access_denied(error: BaseException) -> bool:
    """Return whether the Hub denied access, in which case a cached copy must not be used either."""
    return any(
        isinstance(link, RepositoryNotFoundError) or (isinstance(link, HfHubHTTPError) and _status(link) in (401, 403))
        for link in _chain(error)
    )


def is_unknown_revision(error: BaseException) -> bool:
    """Return whether the repository exists, but not the requested branch, tag or commit of it."""
    return any(isinstance(link, RevisionNotFoundError) for link in _chain(error))


def describe_hub_error(error: BaseException, repo_id: str, kind: RepoKind, *, token_given: bool) -> str | None:
    """Return a message for the first error of the Hub's client in the chain of causes; None without one."""
    for link in _chain(error):
        if message := _describe(link, f"{_NAMES[kind]} {repo_id!r}", token_given):
            return message
    return None


def _describe(error: BaseException, what: str, token_given: bool) -> str | None:
    if isinstance(error, GatedRepoError):
        return f"The {what} is gated: accept its terms on the Hub and set the hf_token of that account"
    if isinstance(error, RepositoryNotFoundError):
        hint = ", or the given hf_token has no access to it" if token_given else "; if it is private, set hf_token"
        return f"There is no {what} on the Hub{hint}"
    if isinstance(error, HfHubHTTPError):
        return _describe_status(error, what)
    if isinstance(error, OfflineModeIsEnabled) and (problem := HUB_PROBLEM.get()):
        return f"{problem}, and the {what} is not in this machine's cache"
    if isinstance(error, OfflineModeIsEnabled):
        return f"The {what} is not in this machine's cache, and HF_HUB_OFFLINE prevents access to the Hub"
    if isinstance(error, httpx.ConnectError):
        return f"The Hub cannot be reached for the {what}; check the network, then try again"
    if isinstance(error, httpx.TransportError):
        return f"The connection to the Hub failed repeatedly for the {what}; try again later"
    return None


def _describe_status(error: HfHubHTTPError, what: str) -> str | None:
    status = _status(error)
    if status < 500 and status not in (401, 403, 429):
        return None
    if status == 401:
        return "The Hub rejected the given hf_token: it is mistyped, expired or revoked"
    if status == 403:
        return f"The given hf_token has no access to the {what}; set one that has"
    if status == 429:
        return f"The Hub limits the rate of requests for the {what} (status 429); try again in some minutes"
    return f"The Hub failed to respond for the {what} (status {status}); try again later"


def _status(error: HfHubHTTPError) -> int:
    return int(error.response.status_code)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, except EntryNotFoundError, which is less informative than its cause."""
    link: BaseException | None = error
    while link is not None:
        if not isinstance(link, EntryNotFoundError):
            yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
