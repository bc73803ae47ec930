from __future__ import annotations

from pathlib import Path

from tests.harness import Server

KEYS = {
    "status", "model_name", "vocab_size", "model_max_length", "has_chat_template", "chat_template_preview",
    "pad_token", "eos_token", "bos_token",
}  # fmt: skip


def test_a_tokenizer_is_preloaded_and_then_listed(server: Server, tiny_model: Path) -> None:
    with server.http() as http:
        answer = http.post("/model/preload", json={"model_name": str(tiny_model)}).json()
        assert set(answer) == KEYS
        assert (answer["status"], answer["model_name"], answer["vocab_size"]) == ("success", str(tiny_model), 400)
        assert (answer["pad_token"], answer["eos_token"], answer["bos_token"]) == ("<|endoftext|>", "<|im_end|>", None)
        assert answer["has_chat_template"]
        assert answer["chat_template_preview"].startswith("{% for message in messages %}")
        cached = http.get("/model/cached").json()
        assert set(cached) == {"cached_models", "count"}
        assert str(tiny_model) in cached["cached_models"]
        assert cached["count"] == len(cached["cached_models"])


def test_what_is_no_model_is_400_in_words(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    with server.http() as http:
        for name in ("no/such/model", "/none", str(tmp_path / "secrets"), "~"):
            answer = http.post("/model/preload", json={"model_name": name})
            assert answer.status_code == 400, name
            assert "can't be loaded" in answer.json()["detail"]
