"""Repositories on the Hugging Face Hub, and whether a token gives access to them."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import HfApi

RepoKind = Literal["model", "dataset"]

_TIMEOUT_SECONDS = 10


def check_access(repo_id: str, kind: RepoKind, token: str | bool | None) -> None:
    """Raise the client's error if the repository cannot be read or the Hub cannot be reached."""
    api = HfApi(token=token)
    # The metadata of a gated repository is public; only the second request checks access to its files.
    if api.repo_info(repo_id, repo_type=kind, timeout=_TIMEOUT_SECONDS).gated:
        api.auth_check(repo_id, repo_type=kind)
