from __future__ import annotations

from pathlib import Path

from tests.harness import Server

KEYS = {
    "status", "model_name", "vocab_size", "model_max_length", "has_chat_template", "chat_template_preview",
    "pad_token", "eos_token", "bos_token",
}  # fmt: skip


def test_a_tokenizer_is_preloaded_and_then_listed(server: Server, tiny_model: Path) -> None:
    with server.http() as http:
        response = http.post("/model/preload", json={"model_name": str(tiny_model)}).json()
        assert set(response) == KEYS
        assert (response["status"], response["model_name"], response["vocab_size"]) == ("success", str(tiny_model), 400)
        assert (response["pad_token"], response["eos_token"], response["bos_token"]) == (
            "<|endoftext|>",
            "<|im_end|>",
            None,
        )
        assert response["has_chat_template"]
        assert response["chat_template_preview"].startswith("{% for message in messages %}")
        cached = http.get("/model/cached").json()
        assert set(cached) == {"cached_models", "count"}
        assert str(tiny_model) in cached["cached_models"]
        assert cached["count"] == len(cached["cached_models"])


def test_an_invalid_model_is_400(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    with server.http() as http:
        for name in ("no/such/model", "/none", str(tmp_path / "secrets"), "~"):
            response = http.post("/model/preload", json={"model_name": name})
            assert response.status_code == 400, name
            assert "cannot be loaded" in response.json()["detail"]
