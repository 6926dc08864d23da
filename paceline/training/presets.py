"""The pocket models: two Llamas over one 4096-token vocabulary, a target and its draft."""

from __future__ import annotations

from transformers import LlamaConfig

PRESETS: dict[str, dict[str, int]] = {
    "pocket-code": {
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "intermediate_size": 1024,
    },
    "pocket-code-draft": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 384,
    },
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
}
"""`tiny` learns next to nothing; it is there to try the recipe in seconds."""


def preset_config(name: str, vocabulary: int, end: int, positions: int = 1024) -> LlamaConfig:
    """The architecture of a preset for a tokenizer with `vocabulary` tokens and end token `end`."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    shape = PRESETS[name]
    return LlamaConfig(
        vocab_size=vocabulary,
        num_key_value_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        **shape,
    )
