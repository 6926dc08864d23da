"""The pocket models: two Llamas over one 4096-token vocabulary, a target and its draft."""

from __future__ import annotations

from typing import NamedTuple

from transformers import LlamaConfig

from paceline.errors import BadRequest


class Shape(NamedTuple):
    """Widths and depth of a preset; every head has `hidden / heads` dimensions and its own key and value."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


PRESETS = {
    "pocket-code": Shape(hidden=384, layers=4, heads=6, intermediate=1024),
    "pocket-code-draft": Shape(hidden=256, layers=2, heads=4, intermediate=768),
    "tiny": Shape(hidden=32, layers=1, heads=2, intermediate=64),
}
"""`tiny` learns next to nothing; it is there to try the recipe in seconds."""


def check_preset(name: str) -> None:
    """Refuse an unknown preset by name."""
    if name not in PRESETS:
        raise BadRequest(f"preset: {name!r} is unknown; {', '.join(PRESETS)} are allowed")


def preset_config(name: str, vocabulary: int, end: int, positions: int = 1024) -> LlamaConfig:
    """The architecture of a preset for a tokenizer with `vocabulary` tokens and end token `end`."""
    check_preset(name)
    shape = PRESETS[name]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
