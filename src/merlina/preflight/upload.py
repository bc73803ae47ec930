"""May the finished model be uploaded? The Hub is asked about the token, in a bounded time."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from merlina.hub_reachability import HubReach
from merlina.preflight.findings import Finding
from merlina.schemas.training import TrainingConfig

_ALL_SECONDS = 5.0
# The Hub limits how often it may be asked about a token, and the page validates with each change of its form.
_KEPT_SECONDS = 120.0
_WRITING_ROLES = ("write", "admin", "contributor")


class UploadCheck:
    """Remembers the Hub's answers for two minutes."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[float, Finding]] = {}
        self._lock = threading.Lock()

    def check(self, config: TrainingConfig, token: str | None, reach: HubReach) -> Finding:
        """Return whether the token, the run's, the server's or the machine's, may write to `output_name`."""
        if not config.push_to_hub:
            return Finding(passed=None)
        token = token or get_token()
        if not token:
            return _refused("push_to_hub: there is no hf_token; the model will not be uploaded")
        asked = f"{config.output_name} {config.hf_hub_private} {hashlib.sha256(token.encode()).hexdigest()}"
        now = time.monotonic()
        with self._lock:
            self._answers = {key: kept for key, kept in self._answers.items() if now - kept[0] < _KEPT_SECONDS}
            if asked in self._answers:
                return self._answers[asked][1]
        problem = reach.problem()
        finding = _not_checked(problem) if problem else _ask(config, token)
        if finding.passed is not None:
            with self._lock:
                self._answers[asked] = now, finding
        return finding


def _ask(config: TrainingConfig, token: str) -> Finding:
    hub = _Hub(token)
    try:
        account = hub.get("whoami-v2")
        name = config.output_name if "/" in config.output_name else f"{account['name']}/{config.output_name}"
        return _judge_account(account, name) or _judge_repository(hub, name, is_private=config.hf_hub_private)
    except OfflineModeIsEnabled:
        return _not_checked("HF_HUB_OFFLINE keeps the server from the Hub")
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            return _refused("hf_token: the Hub does not accept it: it is mistyped, expired or revoked")
        return _not_checked(f"the Hub answered with status {error.response.status_code}")
    except Exception as error:  # the Hub client lets errors of its HTTP library through, whichever that is
        return _not_checked(f"the Hub could not be asked ({type(error).__name__})")


def _judge_account(account: dict[str, Any], name: str) -> Finding | None:
    """Return what stands against an upload to `name`; None without any objection."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    role, namespace = token.get("role"), name.split("/")[0]
    if role == "read":
        return _refused("hf_token: it may only read; uploading needs one with write access")
    if role == "fineGrained":
        return _judge_scopes(token.get("fineGrained") or {}, name)
    if role not in _WRITING_ROLES:
        return _not_checked("the Hub does not say what this kind of token may do")
    organizations = {entry.get("name"): entry.get("roleInOrg") for entry in account.get("orgs") or ()}
    if namespace == account["name"]:
        return None
    if namespace not in organizations:
        return _refused(
            f"output_name: the account {account['name']!r} of the hf_token is not a member of {namespace!r}, so it "
            "can't upload there"
        )
    if organizations[namespace] not in (*_WRITING_ROLES, None):
        return _refused(f"output_name: the account {account['name']!r} may only read in {namespace!r}")
    return None


def _judge_scopes(granted: dict[str, Any], name: str) -> Finding | None:
    entities = [
        str((scope.get("entity") or {}).get("name"))
        for scope in granted.get("scoped") or ()
        if _can_write(scope.get("permissions") or ())
    ]
    if {name, name.split("/")[0]} & set(entities):
        return None
    where = f"only to {', '.join(entities[:3])}" if entities else "to no repository"
    return _refused(f"hf_token: it may write {where}; uploading needs write access to {name}")


def _can_write(permissions: Iterable[str]) -> bool:
    return any(permission in ("repo.write", "repo.content.write") for permission in permissions)


def _judge_repository(hub: _Hub, name: str, *, is_private: bool) -> Finding:
    """Of a repository that exists; one that doesn't is created when the model is uploaded."""
    try:
        repository = hub.get(f"models/{name}")
    except RepositoryNotFoundError:
        return Finding()
    try:
        hub.get(f"models/{name}/auth-check/write")
    except HfHubHTTPError as error:
        if error.response.status_code == 403:
            return _refused(f"hf_token: it may not write to {name}")
        return _not_checked(f"the Hub does not say whether the token may write to {name}")
    if is_private and not repository.get("private"):
        return _refused(
            f"hf_hub_private: {name} is on the Hub already and public, so that nothing will be uploaded; make it "
            "private there, or set hf_hub_private to false"
        )
    return Finding()


class _Hub:
    """Questions to the Hub, all of them within one time limit."""

    def __init__(self, token: str) -> None:
        self._headers = build_hf_headers(token=token)
        self._endpoint = HfApi().endpoint
        self._give_up_at = time.monotonic() + _ALL_SECONDS

    def get(self, path: str) -> dict[str, Any]:
        """Raises HfHubHTTPError where the Hub refuses, and what its HTTP library raises."""
        left = max(0.1, self._give_up_at - time.monotonic())
        response = get_session().get(f"{self._endpoint}/api/{path}", headers=self._headers, timeout=left)
        hf_raise_for_status(response)
        found: dict[str, Any] = response.json() if response.content else {}
        return found


def _refused(warning: str) -> Finding:
    return Finding(passed=False, warnings=(warning,))


def _not_checked(reason: str) -> Finding:
    return Finding(passed=None, not_checked=(f"upload_ready: {reason}",))
