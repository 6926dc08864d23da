"""Views: a pass that runs only some parts of a model, on the model's own weights and its own cache.

A decoder layer is two sub-blocks on a residual stream, `x <- x + attention(x)` and `x <- x + mlp(x)`; a sub-block that
is left out adds nothing. A `View` says, for one pass, which sub-blocks run, and with which input. Both forward passes
take one: the fused one asks it layer by layer, a transformers module is steered by `steered`.

A view writes keys and values only in the layers whose attention it runs. The rule that keeps it from reading what was
never written: **a node attends in a layer only where every slot that it sees was written in that layer.** Self-drafts
keep it because they see the trunk, which the whole model wrote, and nodes that the same view wrote in the same draft;
these are dropped before anything else reads them. Lossy views keep it because the layers of a later token are among
those of every earlier one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paceline.errors import BadRequest, Unsupported

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "block_sparse_moe", "feed_forward")
_NORM = ("input_layernorm", "ln_1")

#: Whether a sub-block runs: for all tokens, for none, or for those marked in a flat bool tensor `[B * T]`.
Runs = bool | Tensor


class View:
    """The whole model; subclasses leave something out. Layers count from 0.

    Attributes:
        first: layers before it do not run; `states`, `[B, T, d]`, take the place of their output.
        last: layers from it on do not run; None: all do.
    """

    first: int = 0
    last: int | None = None
    states: Tensor | None = None

    def attends(self, layer: int) -> Runs:
        """Whether the layer's attention runs; where it does not, it writes no keys and values that may be read."""
        return True

    def feeds(self, layer: int) -> Runs:
        """Whether the layer's feed-forward sub-block runs."""
        return True

    def source(self, layer: int, x: Tensor) -> Tensor:
        """What the layer's attention reads, given the residual stream `x`."""
        return x

    def fed(self, layer: int, before: Tensor, after: Tensor) -> None:
        """The residual stream `[B * T, d]` before and after a feed-forward sub-block that ran."""


class ViewRule(ABC):
    """A lossy way to run a model, in every pass. Subclasses are dataclasses: their fields are the knobs."""

    def check(self, layers: int) -> None:
        """Raises `BadRequest` if the knobs do not suit a model of so many layers."""

    @abstractmethod
    def view(self, generated: np.ndarray, layers: int) -> View:
        """The view of one pass.

        Args:
            generated: `[B * T]` int64, for each token how many were generated before it; negative in the prompt.
            layers: of the model.
        """


@dataclass(eq=False)
class Exit(View):
    """Only the layers before `layer`, then the model's last norm and head: what the text looks like from there."""

    layer: int

    def __post_init__(self) -> None:
        self.last = self.layer


@dataclass(eq=False)
class Resume(View):
    """Only the layers from `layer` on, given the states `[B, T, d]` that enter it."""

    layer: int
    entering: Tensor

    def __post_init__(self) -> None:
        self.first, self.states = self.layer, self.entering


@dataclass(frozen=True)
class Skip(View):
    """All sub-blocks but some. Two equal sets are equal views.

    Attributes:
        attention, mlp: layers whose sub-block is left out.
    """

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    def attends(self, layer: int) -> Runs:
        return layer not in self.attention

    def feeds(self, layer: int) -> Runs:
        return layer not in self.mlp

    def check(self, layers: int) -> None:
        """Raises `BadRequest` if a model of so many layers cannot be run without them."""
        unknown = sorted(layer for layer in self.attention | self.mlp if not 0 <= layer < layers)
        if unknown:
            raise BadRequest(f"view: layer {unknown[0]} cannot be skipped; the model has layers 0 to {layers - 1}")
        if len(self.attention) == len(self.mlp) == layers:
            raise BadRequest(f"view: all {layers} layers would be skipped; keep at least one sub-block")


class Chosen(View):
    """Whole layers, chosen for each token.

    Args:
        runs: `[layers, B * T]` bool, which layers a token goes through.
    """

    def __init__(self, runs: np.ndarray) -> None:
        self._runs: list[Runs] = [bool(row[0]) if (row == row[0]).all() else torch.from_numpy(row) for row in runs]

    def attends(self, layer: int) -> Runs:
        return self._runs[layer]

    def feeds(self, layer: int) -> Runs:
        return self._runs[layer]


@dataclass(eq=False)
class Grouped(View):
    """Attention of `size` neighbouring layers reads one and the same input, that of the group's first layer.

    Attributes:
        size: layers of a group.
        exact: layers that stay outside of groups.
    """

    size: int
    exact: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self._entered, self._filled = torch.empty(0), 0

    def source(self, layer: int, x: Tensor) -> Tensor:
        if layer in self.exact:
            self._filled = 0
            return x
        if layer == 0 or self._filled in (0, self.size):
            self._entered, self._filled = x, 0
        self._filled += 1
        return self._entered


def require_views(model: Any, part: str) -> None:
    """Refuse a model whose layers cannot be left out one by one. Raises `Unsupported`, naming `part`."""
    if "views" not in model.offers:
        unknown = "its attention and feed-forward sub-blocks are not laid out in a known way"
        reason = model.lacks.get("views", unknown)
        raise Unsupported(f"{part} runs only some layers of {model.name}, which does not offer views: {reason}")


@dataclass(frozen=True)
class Block:
    """One decoder layer of a transformers module and its parts; `norm` is what attention's input goes through."""

    layer: nn.Module
    attention: nn.Module
    mlp: nn.Module
    norm: nn.Module | None


def blocks_of(module: nn.Module, config: Any) -> list[Block] | None:
    """The decoder layers of a module, or None where they are not laid out in a known way."""
    if getattr(config, "num_kv_shared_layers", 0):
        return None  # a layer reads keys that another one writes, and would miss it
    for part in module.modules():
        if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers:
            found = [_block(layer) for layer in part]
            if all(found):
                return [block for block in found if block is not None]
    return None


def _block(layer: nn.Module) -> Block | None:
    attention, mlp = _child(layer, _ATTENTION), _child(layer, _MLP)
    return None if attention is None or mlp is None else Block(layer, attention, mlp, _child(layer, _NORM))


def _child(layer: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((getattr(layer, name) for name in names if isinstance(getattr(layer, name, None), nn.Module)), None)


class Steering:
    """Makes a transformers module run by a view.

    Args:
        module: has `blocks_of`.
        blocks: its layers.

    What a sub-block returns beside its states (attention weights and the like) is learnt from one pass of one token.
    """

    def __init__(self, module: Any, blocks: list[Block]) -> None:
        self.blocks = blocks
        self._extra: dict[nn.Module, int | None] = {}
        parts = {part for block in blocks for part in (block.layer, block.attention, block.mlp)}
        with _patched({part: self._noting(part) for part in parts}), torch.inference_mode():
            one = torch.ones(1, 1, dtype=torch.long, device=module.device)
            module(input_ids=one, attention_mask=one, use_cache=False)

    @contextmanager
    def steered(self, view: View) -> Iterator[None]:
        """Inside, the module's forward pass follows the view."""
        last = len(self.blocks) if view.last is None else view.last
        patches: dict[nn.Module, Callable[..., Any]] = {}
        for number, block in enumerate(self.blocks):
            if number < view.first:
                patches[block.layer] = self._constant(block.layer, view.states)
            elif number >= last:
                patches[block.layer] = self._through(block.layer)
            else:
                patches |= self._followed(view, number, block)
        with _patched(patches):
            yield

    def _noting(self, part: nn.Module) -> Callable[..., Any]:
        own = part.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = own(*args, **kwargs)
            self._extra[part] = len(out) - 1 if isinstance(out, tuple) else None
            return out

        return forward

    def _shaped(self, part: nn.Module, states: Tensor) -> Any:
        extra = self._extra[part]
        return states if extra is None else (states, *[None] * extra)

    def _constant(self, part: nn.Module, states: Tensor | None) -> Callable[..., Any]:
        assert states is not None
        return lambda *args, **kwargs: self._shaped(part, states)

    def _through(self, part: nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._shaped(part, _states(args, kwargs))

    def _followed(self, view: View, number: int, block: Block) -> dict[nn.Module, Callable[..., Any]]:
        """The layer's parts, each asking the view whether it runs."""
        fed: list[Tensor] = []
        layer, attention, mlp, norm = block.layer.forward, block.attention.forward, block.mlp.forward, block.norm

        def run_layer(*args: Any, **kwargs: Any) -> Any:
            fed.clear()
            out = layer(*args, **kwargs)
            if fed:
                after = _first(out)
                view.fed(number, (after - fed[0]).flatten(0, -2), after.flatten(0, -2))
            return out

        def run_attention(*args: Any, **kwargs: Any) -> Any:
            return self._gated(block.attention, attention, view.attends(number), args, kwargs)

        def run_mlp(*args: Any, **kwargs: Any) -> Any:
            runs = view.feeds(number)
            out = self._gated(block.mlp, mlp, runs, args, kwargs)
            if runs is not False:
                fed.append(_first(out))
            return out

        patches = {block.layer: run_layer, block.attention: run_attention, block.mlp: run_mlp}
        if norm is not None:
            patches[norm] = _reading(view, number, norm.forward)
        return patches

    def _gated(self, part: nn.Module, own: Callable[..., Any], runs: Runs, args: Any, kwargs: Any) -> Any:
        if runs is True:
            return own(*args, **kwargs)
        if runs is False:
            return self._shaped(part, torch.zeros_like(_states(args, kwargs)))
        out = own(*args, **kwargs)
        states = _first(out)
        kept = torch.where(runs.to(states.device).view(*states.shape[:-1], 1), states, 0)
        return kept if isinstance(out, Tensor) else (kept, *out[1:])


def _reading(view: View, number: int, norm: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: norm(view.source(number, x))


def _states(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _first(out: Any) -> Tensor:
    states: Tensor = out if isinstance(out, Tensor) else out[0]
    return states


@contextmanager
def _patched(patches: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other forward functions for some modules, for a while."""
    before = {part: part.__dict__.get("forward") for part in patches}
    try:
        for part, forward in patches.items():
            part.__dict__["forward"] = forward
        yield
    finally:
        for part, own in before.items():
            if own is None:
                part.__dict__.pop("forward", None)
            else:
                part.__dict__["forward"] = own
