"""Tiny random models of many architectures."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCABULARY = 61
WINDOW = 6
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 400,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
#: For an option of `SIZE` that a configuration class does not take.
ABSENT = object()
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 400}
LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
SHARED = {
    "sliding_window": WINDOW,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "laurel_rank": 4,
    "intermediate_size": [48] * 4,
    "activation_sparsity_pattern": [0.0] * 4,
}
#: Name, configuration class, what differs from `SIZE` (`ABSENT`: the class does not take it).
SUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Mistral": ("MistralConfig", {"sliding_window": None}),
    "Mistral, window": ("MistralConfig", {"sliding_window": WINDOW}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen2, window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "Qwen3": ("Qwen3Config", {}),
    "Qwen3-MoE": ("Qwen3MoeConfig", EXPERTS),
    "Mixtral": ("MixtralConfig", EXPERTS),
    "Gemma": ("GemmaConfig", {}),
    "Gemma 2": ("Gemma2Config", {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "Gemma 3": (
        "Gemma3TextConfig",
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "Gemma 3n, shared keys": ("Gemma3nTextConfig", SHARED),
    "Phi": ("PhiConfig", {}),
    "Phi-3": ("Phi3Config", {}),
    "GPT-2": ("GPT2Config", OLD),
    "GPT-J": ("GPTJConfig", {**OLD, "rotary_dim": 4}),
    "GPT-NeoX": ("GPTNeoXConfig", {}),
    "gpt-oss, sinks": ("GptOssConfig", {**EXPERTS, "sliding_window": WINDOW}),
    "OPT": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "OLMo 2": ("Olmo2Config", {}),
    "StableLM": ("StableLmConfig", {}),
    "Falcon": ("FalconConfig", {"alibi": False, "head_dim": ABSENT}),
    "Cohere 2": ("Cohere2Config", {"sliding_window": WINDOW}),
    "Granite": ("GraniteConfig", {}),
    "SmolLM 3": ("SmolLM3Config", {}),
    "StarCoder 2": ("Starcoder2Config", {"sliding_window": WINDOW}),
    "DeepSeek-V3": ("DeepseekV3Config", {**LATENT, "head_dim": ABSENT}),
}
SLOTS = "cannot take a prepared cache, 4-D mask and position_ids|does not honour tree masks and position_ids"
#: What cannot be driven, and the words of the refusal that say why.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "BLOOM (ALiBi)": ("BloomConfig", {"n_layer": 2, "n_head": 4}, SLOTS),
    "Falcon (ALiBi)": ("FalconConfig", {"alibi": True, "head_dim": ABSENT}, SLOTS),
    "MPT (ALiBi)": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 400}, SLOTS),
    "BERT (bidirectional)": ("BertConfig", {}, SLOTS),
    "RWKV": ("RwkvConfig", {}, SLOTS),
    "Llama 4": ("Llama4TextConfig", {**EXPERTS, "intermediate_size_mlp": 48}, "chunked_attention layers"),
    "GPT-Neo": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "limits attention by window_size=256; only a sliding_window can be driven",
    ),
}


def build(config: str, changes: dict[str, Any]) -> Any:
    """A seeded random model in float32."""
    options = {name: value for name, value in {**SIZE, **changes}.items() if value is not ABSENT}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config)(**options)).float().eval()
