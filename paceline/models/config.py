"""What a module's config and weights say about a pass: bytes read, tokens a text may have, attention windows."""

from __future__ import annotations

from typing import Any

from paceline.errors import Unsupported

_KNOWN_WINDOWS = ("sliding_window", "max_window_layers")


#: Context of a model that has no positions.
UNLIMITED = 1 << 20


def weight_bytes(module: Any, *parts: Any) -> int:
    """All weights, or those of some parts, once; a few rows of an input embedding that is no head."""
    weights = {p.data_ptr(): p.nbytes for part in parts or (module,) for p in part.parameters() if p.numel()}
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    if table is not None and head is not None and table.weight.data_ptr() != head.weight.data_ptr():
        weights.pop(table.weight.data_ptr(), None)
    return sum(weights.values())


def context(config: Any) -> int:
    """Tokens that a text may have.

    LongRoPE changes the rotation of all positions of a pass once one of them lies beyond the length of the original
    training, so that what a text says would depend on how it was cut into passes: such models stay within that length.
    """
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    longest = int(next((length for length in lengths if length), 2048))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return longest
    own = rope.get("original_max_position_embeddings")
    return min(longest, int(own or getattr(config, "original_max_position_embeddings", None) or longest))


def tabulated(config: Any) -> int:
    """Positions that tables of rotations have from the start: all of a text's, unless these are very many."""
    return min(context(config), 4096)


def windows(config: Any) -> dict[str, int | None]:
    """Sliding window of each attention layer type (`None`: unlimited).

    Raises:
        Unsupported: some layer is not softmax attention over all or a known window of the past.
    """
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or []))
    window = getattr(config, "sliding_window", None)
    unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise Unsupported(
            f"model type {config.model_type!r} has {', '.join(unknown)} layers; "
            "their state cannot be kept at the nodes of a tree, only full and sliding-window attention can"
        )
    foreign = [
        f"{name}={value}"
        for name, value in config.to_dict().items()
        if "window" in name and type(value) is int and value and name not in _KNOWN_WINDOWS and "pattern" not in name
    ]
    if foreign or ("sliding_attention" in kinds and not window):
        raise Unsupported(
            f"model type {config.model_type!r} limits attention by {', '.join(foreign) or 'an unnamed window'}; "
            "only a sliding_window can be driven"
        )
    if not kinds:
        return {"full_attention": window if getattr(config, "use_sliding_window", True) else None}
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}
