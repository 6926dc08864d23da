"""Which modules are Llamas: pre-norm RMSNorm, rotary positions, gated MLP, nothing else."""

from __future__ import annotations

from typing import Any

from torch import nn

from paceline.models.packing import unpackable

#: Activation name in a config -> oneDNN's name and algorithm.
ACTIVATIONS = {
    "silu": ("swish", ""),
    "swish": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
_NORMS = {"input_layernorm", "post_attention_layernorm"}
_LAYER = {"self_attn", "mlp"} | _NORMS
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


def fusable(module: Any) -> str | None:
    """Why `FusedDecoder` cannot run this module, or None if it can (its numbers are checked at construction)."""
    body: Any = getattr(module, "model", None)
    head = getattr(module, "lm_head", None)
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    if type(head) is not nn.Linear or any(not hasattr(body, name) for name in parts):
        return f"{type(module).__name__} is not laid out like a Llama with a language-model head"
    if type(body.embed_tokens) is not nn.Embedding:
        return f"the embedding is a {type(body.embed_tokens).__name__}"
    activation = getattr(module.config, "hidden_act", None)
    if activation not in ACTIVATIONS:
        return f"hidden_act={activation!r} is none of {', '.join(ACTIVATIONS)}"
    reasons = [_unusual_rope(module.config), _unusual_matrix(head), _unusual_norm(body.norm)]
    reasons += [_unusual_layer(layer, ACTIVATIONS[activation][0]) for layer in body.layers]
    return next((reason for reason in reasons if reason), None)


def _unusual_rope(config: Any) -> str | None:
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if any(isinstance(value, dict) for value in rope.values()):
        return "rotary parameters differ between layers"
    if kind in ("dynamic", "longrope"):
        return f"rope_type={kind!r} changes with the length of the text"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "only part of each head is rotated"
    return None


def _unusual_layer(layer: Any, activation: str) -> str | None:
    parts = {name for name, _ in layer.named_children()}
    if parts != _LAYER:
        return f"a layer has {sorted(parts)} instead of {sorted(_LAYER)}"
    names = {name for name, _ in layer.self_attn.named_children()}
    if names not in (_ATTENTION, _ATTENTION | _HEAD_NORMS):
        return f"attention has {sorted(names)} instead of {sorted(_ATTENTION)}"
    if not _MLP.issubset(name for name, _ in layer.mlp.named_children()):
        return f"the MLP lacks one of {sorted(_MLP)}"
    matrices = [getattr(layer.self_attn, name) for name in sorted(_ATTENTION)]
    matrices += [layer.mlp.up_proj, layer.mlp.down_proj]
    norms = [getattr(layer, name) for name in sorted(_NORMS)]
    norms += [getattr(layer.self_attn, name) for name in sorted(names & _HEAD_NORMS)]
    reasons = [_unusual_matrix(matrix) for matrix in matrices] + [_unusual_norm(norm) for norm in norms]
    reasons.append(_unusual_matrix(layer.mlp.gate_proj, activation))
    return next((reason for reason in reasons if reason), None)


def _unusual_matrix(linear: Any, activation: str = "none") -> str | None:
    if type(linear) is not nn.Linear:
        return f"a matrix is a {type(linear).__name__} instead of a Linear"
    return unpackable(linear.weight, activation)


def _unusual_norm(norm: Any) -> str | None:
    if not hasattr(norm, "variance_epsilon"):
        return f"a norm is a {type(norm).__name__} instead of a Llama RMSNorm"
    return None
