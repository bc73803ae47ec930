"""A tiny real model: a randomly initialized Llama with a byte-level BPE tokenizer that has ChatML's markers."""

from __future__ import annotations

from pathlib import Path

_TEXT = [
    "Why is the sky blue? Because air scatters blue light more than red light.",
    "What is the capital of France? Paris is the capital of France, on the river Seine.",
    "How do I boil an egg? Put it into boiling water for eight minutes.",
    "system user assistant You are a helpful wizard who answers in one short sentence.",
]
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_model(folder: Path, *, hidden: int = 32, layers: int = 2, tokenizer_of: Path | None = None) -> Path:
    """Write model and tokenizer in transformers' format and return the folder. Another model may give its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if tokenizer_of is None:
        tokenizer = build_tiny_tokenizer(folder)
    else:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
        tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build_tiny_tokenizer(folder: Path):
    """Write and return the tokenizer; its end token is <|im_end|>, and it has no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(_TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_tiny_sentencepiece_tokenizer(begins: str, bos: str | None = "<s>"):
    """Return a tokenizer like that of Llama 2: words start with ▁, byte fallback, adds `bos`, end token </s>.

    `begins` determines where a leading ▁ is added: "prepend" to each piece between special tokens, as in Llama 2's
    files; "first" only at the beginning of the text.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    as_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *as_bytes])
    trained.train_from_iterator(_TEXT, trainer)
    # A new tokenizer, in which the byte tokens are not special tokens.
    backend = Tokenizer(trained.model)
    if begins == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=begins, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if bos is not None:
        backend.add_special_tokens([bos])
        named = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=named)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
