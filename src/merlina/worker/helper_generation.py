"""Answers of a base model, with or without an adapter, to prompts that are formatted already."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from merlina.training.models import ModelSpec, load_model, load_tokenizer
from merlina.training.tokens import encode_prompt


def generate(base_model: str, adapter: str | None, prompts: list[str], max_new_tokens: int) -> list[str]:
    """The most likely continuation of each prompt, up to its end token."""
    model, tokenizer = _loaded(base_model)
    if adapter is None:
        return [_continue(model, tokenizer, prompt, max_new_tokens) for prompt in prompts]
    adapted = PeftModel.from_pretrained(model, adapter)
    try:
        return [_continue(adapted, tokenizer, prompt, max_new_tokens) for prompt in prompts]
    finally:
        adapted.unload()


@lru_cache(maxsize=1)
def _loaded(base_model: str) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        spec = ModelSpec(base_model, "auto", weight_bits=None, attn_implementation="auto", scratch=Path(scratch))
        return load_model(spec).eval(), load_tokenizer(base_model, None)


@torch.no_grad()
def _continue(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    ids = torch.tensor([encode_prompt(tokenizer, prompt)], device=model.device)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")} - {None, tokenizer.unk_token_id}
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()
