"""The findings of `/validate` on the Hub and Weights & Biases: checked, refused, or not checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import Server, training_config
from tests.hub import FakeHub, fake_hub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub({"models/org/there": {}, "models/org/closed": {}}, trouble=["refuse writing org/closed"]) as made:
        made.token = "hf_right"
        made.private["org/closed"] = True
        yield made


@pytest.fixture(scope="module")
def http(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("readiness")
    online = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "0"}
    server = Server(root, online).start()
    with server.http() as client:
        yield client
    server.stop()


def results(http: httpx.Client, **changes: Any) -> dict[str, Any]:
    """Return the check results of a run whose model does not exist, so that the other checks are fast."""
    config = training_config(Path("/no/model"), Path("pairs.jsonl"), "org/new")
    found: dict[str, Any] = http.post("/validate", json={**config, "push_to_hub": True, **changes}).json()["results"]
    return found


def upload(http: httpx.Client, **changes: Any) -> tuple[bool | None, str]:
    """Return the result of the upload check and its messages."""
    found = results(http, **changes)
    said = [*found["warnings"], *found["not_checked"]]
    about = [
        line for line in said if line.split(":")[0] in ("hf_token", "output_name", "hf_hub_private", "upload_ready")
    ]
    return found["checks"]["upload_ready"], " ".join(about)


def account(hub: FakeHub, **token: Any) -> None:
    hub.account = {**hub.account, "auth": {"type": "access_token", "accessToken": token}}


def test_a_token_is_shown_to_the_hub_once_and_must_be_allowed_to_write(hub: FakeHub, http: httpx.Client) -> None:
    hub.asked.clear()
    assert upload(http, hf_token="hf_right") == (True, "")
    assert hub.asked == ["api/whoami-v2", "api/models/org/new"]
    assert upload(http, hf_token="hf_right") == (True, "")
    assert len(hub.asked) == 2
    ready, said = upload(http, hf_token="hf_invalid")
    assert (ready, said) == (False, "hf_token: the Hub rejected it; it is mistyped, expired or revoked")
    ready, said = upload(http, hf_token="hf_right", output_name="strangers/model")
    assert ready is False
    assert "the hf_token belongs to 'user', which is not a member of 'strangers'" in said
    assert upload(http, hf_token="hf_right", output_name="mine") == (True, "")


def test_the_repository_must_be_open_to_the_token_and_private_if_requested(hub: FakeHub, http: httpx.Client) -> None:
    ready, said = upload(http, hf_token="hf_right", output_name="org/closed")
    assert (ready, said) == (False, "hf_token: it has no write access to org/closed")
    ready, said = upload(http, hf_token="hf_right", output_name="org/there")
    assert ready is False
    assert said.startswith("hf_hub_private: org/there exists on the Hub and is public")
    assert upload(http, hf_token="hf_right", output_name="org/there", hf_hub_private=False) == (True, "")


@pytest.mark.parametrize(
    ("token", "ready", "said"),
    [
        ({"role": "read"}, False, "hf_token: it is read-only; uploading requires write access"),
        (
            {"role": "fineGrained", "fineGrained": {"scoped": []}},
            False,
            "hf_token: it has write access to no repository; ",
        ),
        (
            {"role": "fineGrained", "fineGrained": {"scoped": ["org/else"]}},
            False,
            "hf_token: it has write access only to org/e",
        ),
        ({"role": "fineGrained", "fineGrained": {"scoped": ["org"]}}, True, ""),
        ({}, None, "upload_ready: the Hub does not report the permissions of this kind of token"),
    ],
)
def test_a_tokens_role_decides(
    hub: FakeHub, http: httpx.Client, request: pytest.FixtureRequest, token: dict[str, Any], ready: bool, said: str
) -> None:
    before = hub.account
    scoped = token.get("fineGrained", {}).get("scoped", [])
    scopes = [{"entity": {"name": name, "type": "model"}, "permissions": ["repo.write"]} for name in scoped]
    account(hub, **{**token, "fineGrained": {"scoped": scopes}})
    name = f"org/role-{request.node.callspec.indices['token']}"
    found = upload(http, hf_token="hf_right", output_name=name)
    hub.account = before
    assert found[0] is ready
    assert found[1].startswith(said)


def test_a_hub_that_does_not_answer_is_not_waited_for(hub: FakeHub, http: httpx.Client) -> None:
    hub.trouble.add("hang api/whoami-v2")
    began = time.monotonic()
    ready, said = upload(http, hf_token="hf_right", output_name="org/slow")
    assert time.monotonic() - began < 15
    hub.trouble.discard("hang api/whoami-v2")
    hub.released.set()
    assert ready is None
    assert said.startswith("upload_ready: the request to the Hub failed (")


def test_what_is_not_asked_for_is_not_called_ready(http: httpx.Client) -> None:
    found = results(http, push_to_hub=False, output_name="new")
    assert (found["checks"]["upload_ready"], found["checks"]["wandb_ready"]) == (None, None)
    assert found["checks"]["vram_sufficient"] is False
    assert "vram_sufficient: the model's size is unknown" in found["not_checked"]


def test_metrics_can_be_sent_only_with_the_package_and_a_plausible_key(
    http: httpx.Client, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    def ready(client: httpx.Client, key: str | None) -> tuple[bool, str]:
        found = results(client, push_to_hub=False, output_name="new", use_wandb=True, wandb_key=key)
        said = [*found["warnings"], *found["not_checked"]]
        return found["checks"]["wandb_ready"], " ".join(line for line in said if "wandb" in line)

    key = "0123456789abcdef" * 2 + "01234567"
    package = tmp_path / "site" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    assert "there is no wandb_key" in ready(http, None)[1]
    assert ready(http, key) == (
        False, "use_wandb: the package wandb is not installed on the server; the run continues without it"
    )  # fmt: skip
    with new_server(PYTHONPATH=str(package.parent)).http() as installed:
        assert ready(installed, key) == (True, "wandb_ready: whether W&B accepts the wandb_key")
        assert ready(installed, f"local-{key}")[0]
        assert "has 5 characters, but keys have 40 or more" in ready(installed, "short")[1]
