"""The Hugging Face Hub: may we read a repository, and what its client's errors mean in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

# Whichever of httpx and its successor this version of the client is built on.
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

RepoKind = Literal["model", "dataset"]

# Why the Hub is not asked now although it may be; set where a call is answered from this machine's cache instead.
HUB_PROBLEM: ContextVar[str | None] = ContextVar("hub_problem", default=None)
_NAMES: dict[RepoKind, str] = {"model": "model", "dataset": "data set"}
_TIMEOUT_SECONDS = 10


def check_access(repo_id: str, kind: RepoKind, token: str | bool | None) -> None:
    """Raises what the Hub's client raises where the repository can't be read, or can't be asked about."""
    api = HfApi(token=token)
    # The description of a gated repository is open to all; only this second question is about its files.
    if api.repo_info(repo_id, repo_type=kind, timeout=_TIMEOUT_SECONDS).gated:
        api.auth_check(repo_id, repo_type=kind)


def is_access_denied(error: BaseException) -> bool:
    """Whether the Hub was reached and said no, which no copy in a cache may get around."""
    return any(
        isinstance(link, RepositoryNotFoundError) or (isinstance(link, HfHubHTTPError) and _status(link) in (401, 403))
        for link in _chain(error)
    )


def describe_hub_error(error: BaseException, repo_id: str, kind: RepoKind, *, token_given: bool) -> str | None:
    """What is wrong and what to do, from the first error in the chain that is the Hub client's; None without one."""
    for link in _chain(error):
        if words := _link_in_words(link, f"{_NAMES[kind]} {repo_id!r}", token_given):
            return words
    return None


def _link_in_words(error: BaseException, what: str, token_given: bool) -> str | None:
    if isinstance(error, GatedRepoError):
        return f"The {what} is gated: accept its terms on the Hub and give the hf_token of that account"
    if isinstance(error, RepositoryNotFoundError):
        hint = "the hf_token given can't see it" if token_given else "if it is private, give a hf_token"
        return f"There is no {what} on the Hub; {hint}"
    if isinstance(error, HfHubHTTPError):
        return _answer_in_words(error, what)
    if isinstance(error, OfflineModeIsEnabled) and (problem := HUB_PROBLEM.get()):
        return f"{problem}, and the {what} is not in this machine's cache"
    if isinstance(error, OfflineModeIsEnabled):
        return f"The {what} is not in this machine's cache, and HF_HUB_OFFLINE keeps the server from the Hub"
    if isinstance(error, httpx.ConnectError):
        return f"The Hub can't be reached for the {what}; check the network, then try again"
    if isinstance(error, httpx.TransportError):
        return f"The connection to the Hub broke off again and again over the {what}; try again later"
    return None


def _answer_in_words(error: HfHubHTTPError, what: str) -> str | None:
    status = _status(error)
    if status < 500 and status not in (401, 403, 429):
        return None
    if status == 401:
        return "The Hub doesn't accept the hf_token given: it is mistyped, expired or revoked"
    if status == 403:
        return f"The hf_token given has no right to the {what}; give one that has"
    if status == 429:
        return f"The Hub was asked too often for the {what} (429); try again in some minutes"
    return f"The Hub can't answer about the {what} (status {status}); try again later"


def _status(error: HfHubHTTPError) -> int:
    return int(error.response.status_code)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and so on; that a file isn't there tells nothing, but its cause may."""
    link: BaseException | None = error
    while link is not None:
        if not isinstance(link, EntryNotFoundError):
            yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
