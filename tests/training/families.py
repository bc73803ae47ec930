"""A tiny random model of every causal language model family that the installed transformers knows.

The settings are found from each family's own configuration class: known names get small values, lists with an entry for
each layer are shortened so that every kind of layer is still there. What this cannot guess is in `_OWN`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

VOCABULARY, WINDOW = 64, 7
LARGEST = 8_000_000
# The largest number of layers.
_KINDS = 4

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "shape_vocab_size"), VOCABULARY),
    "unpadded_vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "input_embedding_size"), 32),
    **dict.fromkeys(("output_embedding_size", "backbone_hidden_size", "lru_width", "dim_model_base", "d_embed"), 32),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim"), 24),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "intermediate_size_mlp", "ffn_hidden_size", "d_inner"), 24),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "dense_intermediate_size", "dff", "dim_ff", "n_inner"), 24),
    **dict.fromkeys(("feed_forward_size", "prompt_mid_dim"), 24),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "swa_num_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "attention_head_size", "dim_head", "d_kv"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "swa_v_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    "rotary_dim": 8,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "laurel_rank", "adapter_rank"), 8),
    "router_hidden_size": 8,
    **dict.fromkeys(("hidden_size_per_layer_input", "loop_gate_rank", "gated_norm_rank", "hc_lowrank", "d_rel"), 8),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_shared_experts"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "local_attention", "window_size"), WINDOW),
    **dict.fromkeys(("sliding_window_size", "attention_window_size", "keep_window_size"), WINDOW),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions"), 256),
    "max_source_positions": 64,
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 4),
    **dict.fromkeys(("zero_expert_num",), 2),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    **dict.fromkeys(("eos_token_id",), 2),
    "num_kv_shared_layers": 0,
    "index_topk": 64,
    "pad_index": 0,
    "is_decoder": True,
    # Dropout would make results differ from run to run.
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "emb_pdrop"), 0.0),
    **dict.fromkeys(("classifier_dropout", "layerdrop", "decoder_layerdrop", "summary_first_dropout"), 0.0),
}  # fmt: skip

_SLIDING_AND_FULL = ("sliding_attention", "full_attention")
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip

_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": WINDOW},
    "mamba2": {"num_heads": 4, "head_dim": 16, "hidden_size": 32, "expand": 2, "n_groups": 1},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3": {
        "mm_tokens_per_image": 4,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
    },
    "cohere_compass_text": {
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _SLIDING_AND_FULL},
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "fuyu": {"text_config": {"model_type": "persimmon", **_TEXT}},
    "got_ocr2": {"text_config": {"model_type": "qwen2", **_TEXT}},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3", **_TEXT}},
    "nemotron_h": {"n_groups": 1, "layers_block_type": ["mamba", "attention", "moe"]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ple_embed_dim": 8,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 1,
    },
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
}


# Families without a causal language model that can be built here and run on text alone.
CANNOT: dict[str, str] = {
    **dict.fromkeys(("blt", "dots3_note", "dots3_note_text"), "not all of its sizes can be set small together"),
    "gemma3n": "needs the packages timm and Pillow; its text model is gemma3n_text",
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "drafts tokens from another model's hidden states"
    ),
    "gemma4_unified": "its image part cannot be set small; its text model is gemma4_unified_text",
    **dict.fromkeys(("musicgen", "musicgen_melody"), "generates codes of audio, not text"),
    "qwen4_exp": "its image part cannot be set small; its text model is qwen4_exp_text",
    "reformer": "its layers have gradients only where random numbers are drawn in training mode",
}


def families() -> dict[str, str]:
    """Return model types with the names of their classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[family](**_settings(CONFIG_MAPPING[family], _OWN.get(family, {})))


def tiny_model(family: str) -> Any:
    """Return a model in float32 with at most a few million weights, all of which affect its results."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(family)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} weights: not all sizes are known")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).float()
    _shake(model)
    return model.eval()


def _settings(kind: Any, own: dict[str, Any]) -> dict[str, Any]:
    fields = set(getattr(kind, "__dataclass_fields__", {}))
    settings = {name: value for name, value in _SIZES.items() if name in fields}
    if "qk_rope_head_dim" in fields:
        # Latent attention: keys have as many heads as queries, and the size of a head is the sum of its components.
        settings |= {name: 4 for name in ("num_key_value_heads",) if name in fields}
        settings.pop("head_dim", None)
    settings |= _layer_lists(kind)
    for name, sub in (kind.sub_configs or {}).items():
        if name in fields and name not in own and hasattr(sub, "__dataclass_fields__"):
            settings[name] = _settings(sub, {})
    return settings | own


def _layer_lists(kind: Any) -> dict[str, Any]:
    """Return the default configuration's lists with one entry for each layer, shortened but with every value."""
    try:
        default = kind()
    except Exception:
        return {}
    layers = getattr(default, "num_hidden_layers", None)
    lists = {
        name: value
        for name, value in vars(default).items()
        if isinstance(value, list) and layers and len(value) == layers and name in kind.__dataclass_fields__
    }
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items()}
    # Some entries are numbers of layers, not kinds.
    kinds = {name: value for name, value in kinds.items() if len(value) <= _KINDS}
    count = max([2, *map(len, kinds.values())])
    name_of_count = "num_hidden_layers" if "num_hidden_layers" in kind.__dataclass_fields__ else None
    settings: dict[str, Any] = {name: (value * count)[:count] for name, value in kinds.items()}
    return settings | ({name_of_count: count} if name_of_count else {})


def _shake(model: nn.Module) -> None:
    """Scale weights to the size in trained models: small ones would hide errors of attention."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if not weight.is_floating_point():
                    continue
                noise = torch.randn(weight.shape, generator=draw)
                if weight.ndim == 1:
                    weight.add_(0.1 * noise)
                elif isinstance(module, (nn.Linear, nn.Embedding)) or weight.ndim == 3:
                    weight.copy_(noise if isinstance(module, nn.Embedding) else noise * weight.shape[-1] ** -0.5)
                del name
