"""Check that the token allows uploading the finished model; the requests to the Hub take 5 s at most."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from merlina.hub_reachability import HubReachability
from merlina.preflight.report import CheckResult, warning
from merlina.schemas.training.config import TrainingConfig

_ALL_SECONDS = 5.0
# The Hub limits the rate of requests about a token, and the page validates after every change of its form.
_CACHE_SECONDS = 120.0
_WRITING_ROLES = ("write", "admin", "contributor")


class UploadCheck:
    """Upload permission check, cached for two minutes."""

    def __init__(self) -> None:
        self._cached: dict[str, tuple[float, CheckResult]] = {}
        self._lock = threading.Lock()

    def check(self, config: TrainingConfig, token: str | None, hub: HubReachability) -> CheckResult:
        """Check that the token (the run's, else the server's, else the machine's) may write to `output_name`."""
        if not config.push_to_hub:
            return CheckResult(passed=None)
        token = token or get_token()
        if not token:
            return warning("push_to_hub", "there is no hf_token, so the model will not be uploaded")
        key = f"{config.output_name} {config.hf_hub_private} {hashlib.sha256(token.encode()).hexdigest()}"
        now = time.monotonic()
        with self._lock:
            self._cached = {name: entry for name, entry in self._cached.items() if now - entry[0] < _CACHE_SECONDS}
            if key in self._cached:
                return self._cached[key][1]
        problem = hub.problem()
        result = _not_checked(problem) if problem else _query(config, token)
        if result.passed is not None:
            with self._lock:
                self._cached[key] = now, result
        return result


def _query(config: TrainingConfig, token: str) -> CheckResult:
    hub = _Hub(token)
    try:
        account = hub.get("whoami-v2")
        name = config.output_name if "/" in config.output_name else f"{account['name']}/{config.output_name}"
        return _check_account(account, name) or _check_repository(hub, name, is_private=config.hf_hub_private)
    except OfflineModeIsEnabled:
        return _not_checked("HF_HUB_OFFLINE prevents access to the Hub")
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            return warning("hf_token", "the Hub rejected it; it is mistyped, expired or revoked")
        return _not_checked(f"the Hub responded with status {error.response.status_code}")
    except Exception as error:  # the Hub's client raises errors of the HTTP library that it uses
        return _not_checked(f"the request to the Hub failed ({type(error).__name__})")


def _check_account(account: dict[str, Any], name: str) -> CheckResult | None:
    """Return why the account may not upload to `name`; None if it may."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    role, namespace = token.get("role"), name.split("/")[0]
    if role == "read":
        return warning("hf_token", "it is read-only; uploading requires write access")
    if role == "fineGrained":
        return _check_scopes(token.get("fineGrained") or {}, name)
    if role not in _WRITING_ROLES:
        return _not_checked("the Hub does not report the permissions of this kind of token")
    organizations = {entry.get("name"): entry.get("roleInOrg") for entry in account.get("orgs") or ()}
    if namespace == account["name"]:
        return None
    if namespace not in organizations:
        return warning(
            "output_name",
            f"the hf_token belongs to {account['name']!r}, which is not a member of {namespace!r} and "
            "cannot upload there",
        )
    if organizations[namespace] not in (*_WRITING_ROLES, None):
        return warning("output_name", f"the account {account['name']!r} has only read access to {namespace!r}")
    return None


def _check_scopes(granted: dict[str, Any], name: str) -> CheckResult | None:
    entities = [
        str((scope.get("entity") or {}).get("name"))
        for scope in granted.get("scoped") or ()
        if _can_write(scope.get("permissions") or ())
    ]
    if {name, name.split("/")[0]} & set(entities):
        return None
    scope = f"only to {', '.join(entities[:3])}" if entities else "to no repository"
    return warning("hf_token", f"it has write access {scope}; uploading requires write access to {name}")


def _can_write(permissions: Iterable[str]) -> bool:
    return any(permission in ("repo.write", "repo.content.write") for permission in permissions)


def _check_repository(hub: _Hub, name: str, *, is_private: bool) -> CheckResult:
    """Check an existing repository; a missing one is created by the upload."""
    try:
        repository = hub.get(f"models/{name}")
    except RepositoryNotFoundError:
        return CheckResult()
    try:
        hub.get(f"models/{name}/auth-check/write")
    except HfHubHTTPError as error:
        if error.response.status_code == 403:
            return warning("hf_token", f"it has no write access to {name}")
        return _not_checked(f"the Hub does not report whether the token has write access to {name}")
    if is_private and not repository.get("private"):
        return warning(
            "hf_hub_private",
            f"{name} exists on the Hub and is public, so nothing will be uploaded; make it private "
            "there, or set hf_hub_private to false",
        )
    return CheckResult()


class _Hub:
    """Client for the Hub's API, with one time limit for all requests."""

    def __init__(self, token: str) -> None:
        self._headers = build_hf_headers(token=token)
        self._endpoint = HfApi().endpoint
        self._give_up_at = time.monotonic() + _ALL_SECONDS

    def get(self, path: str) -> dict[str, Any]:
        """Return the response of a GET request. Raises HfHubHTTPError or an error of the HTTP library."""
        left = max(0.1, self._give_up_at - time.monotonic())
        response = get_session().get(f"{self._endpoint}/api/{path}", headers=self._headers, timeout=left)
        hf_raise_for_status(response)
        found: dict[str, Any] = response.json() if response.content else {}
        return found


def _not_checked(reason: str) -> CheckResult:
    return CheckResult(passed=None, not_checked=(f"upload_ready: {reason}",))
