"""What a view is told, and what it may change, in every architecture: against hooks on the layers' own parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.architectures import SUPPORTED, build
from torch import Tensor, nn

from paceline.errors import Unsupported
from paceline.models.loading import load_model
from paceline.models.views import Grouped, View
from tests.views.support import scored

PROMPT, TOKENS = [5, 6, 7, 8], [9, 10, 11]
WITHOUT = {"OPT", "Gemma 3n, shared keys"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: case for name, case in SUPPORTED.items() if name not in WITHOUT},
    "Granite, scaled": ("GraniteConfig", {"residual_multiplier": 0.3}),
    "GPT-NeoX, in order": ("GPTNeoXConfig", {"use_parallel_residual": False}),
    "StableLM, side by side": ("StableLmConfig", {"use_parallel_residual": True}),
    "Falcon, two norms": ("FalconConfig", {**SUPPORTED["Falcon"][1], "new_decoder_architecture": True}),
}
#: Where the stream may be seen in front of the feed-forward sub-block: what reads it there. None: side by side.
READERS: dict[str, str | None] = {
    "Gemma 2": "pre_feedforward_layernorm",
    "Gemma 3": "pre_feedforward_layernorm",
    "OLMo 2": "mlp",
    "GPT-2": "ln_2",
    **dict.fromkeys(
        ["Phi", "GPT-J", "GPT-NeoX", "Falcon", "Cohere 2", "StableLM, side by side", "Falcon, two norms"], None
    ),
}
NORMS = {"GPT-2": "ln_1", "GPT-J": "ln_1", "OLMo 2": None, "Falcon, two norms": "ln_attn"}


def model_of(name: str) -> Any:
    return load_model(build(*MODELS[name]), fast=False)


def layers_of(model: Any) -> Any:
    return next(
        part for part in model.module.modules() if isinstance(part, nn.ModuleList) and len(part) == model.num_layers
    )


def attention_of(layer: Any) -> Any:
    return next(
        getattr(layer, name) for name in ("self_attn", "attn", "attention", "self_attention") if hasattr(layer, name)
    )


def entering(args: Any, kwargs: Any, out: Any = None) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def leaving(args: Any, kwargs: Any, out: Any) -> Tensor:
    found: Tensor = out if isinstance(out, Tensor) else out[0]
    return found


class Listener(View):
    def __init__(self) -> None:
        self.heard: list[tuple[int, Tensor, Tensor]] = []

    def fed(self, layer: int, before: Tensor, after: Tensor) -> None:
        self.heard.append((layer, before, after))


def streams(model: Any, name: str) -> list[tuple[Tensor, Tensor]]:
    """Of every layer the stream before and after its feed-forward sub-block, as the module's own parts see it."""
    seen: dict[tuple[int, str], Tensor] = {}

    def notes(key: tuple[int, str], of: Callable[[Any, Any, Any], Tensor]) -> Callable[..., None]:
        return lambda part, args, kwargs, out: seen.__setitem__(key, of(args, kwargs, out).flatten(0, -2).clone())

    hooks = []
    for number, layer in enumerate(layers_of(model)):
        reader = READERS.get(name, "post_attention_layernorm")
        wanted = [(layer, "entering", entering), (layer, "after", leaving), (attention_of(layer), "attention", leaving)]
        if reader is not None:
            wanted.append((getattr(layer, reader), "before", entering))
        hooks += [part.register_forward_hook(notes((number, key), of), with_kwargs=True) for part, key, of in wanted]
    scored(model, PROMPT, TOKENS)
    for hook in hooks:
        hook.remove()
    found = []
    for number in range(model.num_layers):
        before = seen.get((number, "before"), seen[number, "entering"] + seen[number, "attention"])
        found.append((before, seen[number, "after"]))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_view_is_told_the_stream_before_and_after_the_feed_forward_part(name: str) -> None:
    model, listener = model_of(name), Listener()
    plain = scored(model, PROMPT, TOKENS).logits
    expected = streams(model, name)
    torch.testing.assert_close(scored(model, PROMPT, TOKENS, view=listener).logits, plain, rtol=0, atol=0)
    assert [layer for layer, _, _ in listener.heard] == list(range(model.num_layers))
    for (_, *heard), stream in zip(listener.heard, expected, strict=True):
        for got, wanted in zip(heard, stream, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_groups_read_the_norm_of_what_enters_their_first_layer(name: str) -> None:
    """Attention alone: a feed-forward part beside it, on the same norm, goes on reading its own layer's input."""
    model = model_of(name)
    layers, entered, hooks = layers_of(model), {}, []

    def enter(number: int) -> Callable[..., None]:
        return lambda part, args, kwargs: entered.__setitem__(number, entering(args, kwargs))

    def redirect(number: int) -> Callable[..., Any]:
        norm = NORMS.get(name, "input_layernorm")

        def hook(part: Any, args: Any, kwargs: Any) -> Any:
            x = entered[number - number % 2]
            x = x if norm is None else getattr(layers[number], norm)(x)
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    plain = scored(model, [], TOKENS).logits
    got = scored(model, [], TOKENS, view=Grouped(2)).logits
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(enter(number), with_kwargs=True))
        hooks.append(attention_of(layer).register_forward_pre_hook(redirect(number), with_kwargs=True))
    expected = scored(model, [], TOKENS).logits
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got - plain).abs().max() > 1e-3


def test_where_attention_reads_something_else_groups_are_refused() -> None:
    module = build(*SUPPORTED["Llama"])

    def double(part: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "hidden_states": 2 * kwargs["hidden_states"]}

    for layer in module.model.layers:
        layer.self_attn.register_forward_pre_hook(double, with_kwargs=True)
    model = load_model(module, fast=False)
    plain = scored(model, PROMPT, TOKENS).logits
    torch.testing.assert_close(scored(model, PROMPT, TOKENS, view=Listener()).logits, plain, rtol=0, atol=0)
    with pytest.raises(Unsupported, match="Grouped: what attention reads in a LlamaDecoderLayer cannot be replaced"):
        scored(model, PROMPT, TOKENS, view=Grouped(2))
