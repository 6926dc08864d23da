"""Inflation: embed a small model in a larger one that computes the same function.

It costs what a large model costs and says what the small one says: benchmarks at deployment cost with realistic text,
where no large checkpoint is at hand. Whatever is measured on such a model is to be labelled *inflated*.

How a Llama of width d becomes one of width D > d:

- the residual stream gains D - d dimensions that stay exactly zero: the embedding has zero columns there, and the
  output projections of attention and MLP have zero rows;
- RMSNorm divides by the root of the mean over D instead of d dimensions; weights times `sqrt(d / D)` and epsilon times
  `d / D` make up for it (exactly so in any binary format when D is 4 d);
- further heads and MLP units exist, but the output projections give them zero weight;
- further layers have output projections of zero, so they add nothing.

Every other new weight meets an activation or a successor that is zero; it is filled with noise, so that neither
kernels nor memory can profit from it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from paceline.errors import BadRequest, Unsupported

#: Shapes of common sizes; `hidden` must be a multiple of the small model's head size.
INFLATED: dict[str, dict[str, int]] = {
    "100m": {"hidden": 768, "layers": 12, "intermediate": 2048},
    "500m": {"hidden": 1536, "layers": 20, "intermediate": 4096},
}


def inflate_preset(module: Any, name: str) -> Any:
    """`inflate` to a named size. Raises `BadRequest` for an unknown name."""
    if not isinstance(name, str) or name not in INFLATED:
        raise BadRequest(f"inflated: {name!r} is unknown; {', '.join(INFLATED)} are allowed")
    return inflate(module, **INFLATED[name])


@torch.no_grad()
def inflate(module: Any, *, hidden: int, layers: int, intermediate: int | None = None) -> Any:
    """A larger model of the same class, dtype and function.

    Args:
        module: a Llama-like causal model (`LlamaForCausalLM`, or one with the same layers); left as it is.
        hidden: new width D, a multiple of the head size; heads grow in proportion.
        layers: new number of layers, at least the old one.
        intermediate: new MLP width; in proportion to `hidden` by default.

    Returns:
        A new module in evaluation mode.

    Raises:
        BadRequest: a size is smaller than the module's, or does not divide into heads.
        Unsupported: the module has parts that this does not know.
    """
    if not hasattr(getattr(module, "model", None), "rotary_emb"):
        raise Unsupported(f"inflate: {type(module).__name__} is not laid out like a Llama")
    old = module.config
    dim = getattr(old, "head_dim", None) or old.hidden_size // old.num_attention_heads
    wide = intermediate or old.intermediate_size * hidden // old.hidden_size
    group = old.num_attention_heads // old.num_key_value_heads
    for name, new, least in (
        ("hidden", hidden, old.hidden_size),
        ("layers", layers, old.num_hidden_layers),
        ("intermediate", wide, old.intermediate_size),
        ("heads", hidden // dim, old.num_attention_heads),
    ):
        if new < least:
            raise BadRequest(f"inflate({name}={new}): at least the model's own {least} is needed")
    if hidden % (dim * group):
        raise BadRequest(f"inflate(hidden={hidden}): a multiple of {dim * group} (whole heads) is needed")
    config = copy.deepcopy(old)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden, wide, layers
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = hidden // dim, hidden // dim // group, dim
    config.rms_norm_eps = old.rms_norm_eps * old.hidden_size / hidden
    if getattr(old, "layer_types", None):
        config.layer_types = [old.layer_types[i % len(old.layer_types)] for i in range(layers)]
    large = _empty(type(module), config, module.dtype, module.device)
    _copy(module, large)
    large.generation_config = copy.deepcopy(module.generation_config)
    return large.eval()


def _empty(cls: type, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            large = cls(config)
        # Rotary tables are computed by the constructor, which has to run for real once; it is cheap without weights.
        large = large.to_empty(device=device)
    finally:
        torch.set_default_dtype(before)
    rotary = large.model.rotary_emb
    large.model.rotary_emb = type(rotary)(config=config).to(device)
    large.tie_weights()
    return large


def _copy(small: Any, large: Any) -> None:
    noise = _Noise(large.dtype, large.device)
    d, D = small.config.hidden_size, large.config.hidden_size
    scale = math.sqrt(d / D)
    _corner(large.model.embed_tokens.weight, small.model.embed_tokens.weight, None)
    if large.lm_head.weight is not large.model.embed_tokens.weight:
        _corner(large.lm_head.weight, small.lm_head.weight, noise)
    _norm(large.model.norm, small.model.norm, scale)
    for i, layer in enumerate(large.model.layers):
        source = small.model.layers[i] if i < len(small.model.layers) else None
        _layer(source, layer, noise, scale)


def _layer(source: Any, layer: Any, noise: _Noise, scale: float) -> None:
    known = {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"}
    if {name for name, _ in layer.named_children()} != known:
        raise Unsupported(f"inflate: {type(layer).__name__} has other parts than {', '.join(sorted(known))}")
    for name, target in layer.named_modules():
        given = source.get_submodule(name) if source is not None else None
        if name.endswith("norm"):
            # A norm over a head's own dimensions is as wide as before.
            _norm(target, given, 1.0 if "self_attn" in name else scale)
        elif isinstance(target, nn.Linear):
            out = name.endswith(("o_proj", "down_proj"))
            _corner(target.weight, given.weight if given is not None else None, None if out else noise)
            if target.bias is not None:
                _corner(target.bias, given.bias if given is not None else None, None)


def _corner(target: Tensor, given: Tensor | None, noise: _Noise | None) -> None:
    """Put the small tensor into the first corner of the large one, noise (or zeros) elsewhere."""
    if noise is None:
        target.zero_()
    else:
        noise.fill(target)
    if given is not None:
        target[tuple(slice(0, n) for n in given.shape)] = given


def _norm(target: Any, given: Any, scale: float) -> None:
    target.weight.fill_(1.0)
    if given is not None:
        target.weight[: len(given.weight)] = (given.weight.double() * scale).to(target.weight.dtype)


class _Noise:
    """Normal noise of standard deviation 0.02, cut from one block: drawing hundreds of millions takes too long."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.block = (torch.randn(1 << 20, generator=generator) * 0.02).to(dtype=dtype, device=device)

    def fill(self, target: Tensor) -> None:
        flat = target.view(-1)
        for at in range(0, len(flat), len(self.block)):
            part = flat[at : at + len(self.block)]
            part.copy_(self.block[: len(part)])
