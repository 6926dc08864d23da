"""Running a transformers module by a view: for the time of a pass, its layers' parts ask the view what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from paceline.errors import Unsupported
from paceline.models.views import Runs, View

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "block_sparse_moe", "feed_forward")


@dataclass(frozen=True)
class Block:
    """One decoder layer of a transformers module and its two sub-blocks."""

    layer: nn.Module
    attention: nn.Module
    mlp: nn.Module


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
    return None if attention is None or mlp is None else Block(layer, attention, mlp)


def _child(layer: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((getattr(layer, name) for name in names if isinstance(getattr(layer, name, None), nn.Module)), None)


class Steering:
    """Makes a transformers module run by a view.

    Args:
        module: has `blocks_of`.
        blocks: its layers.

    Two things are learnt from one pass of one token: what a sub-block returns beside its states (attention weights and
    the like), and what a layer's input goes through before attention reads it.
    """

    def __init__(self, module: Any, blocks: list[Block]) -> None:
        self.blocks = blocks
        self._extra: dict[nn.Module, int | None] = {}
        self._given: dict[nn.Module, Tensor] = {}
        self._said: dict[nn.Module, Any] = {}
        parts = {part for block in blocks for part in (block.layer, *block.layer.children())}
        with _patched({part: self._noting(part) for part in parts}), torch.inference_mode():
            one = torch.ones(1, 1, dtype=torch.long, device=module.device)
            module(input_ids=one, attention_mask=one, use_cache=False)
        self._reads = [self._reading(block) for block in blocks]
        self._given.clear()
        self._said.clear()

    @contextmanager
    def steered(self, view: View) -> Iterator[None]:
        """Inside, the module's forward pass follows the view.

        Raises:
            Unsupported: the view gives attention another input, and what that would have to go through is not known.
        """
        if view.redirects and None in self._reads:
            layer = type(self.blocks[self._reads.index(None)].layer).__name__
            raise Unsupported(f"{type(view).__name__}: what attention reads in a {layer} cannot be replaced")
        last = len(self.blocks) if view.last is None else view.last
        patches: dict[nn.Module, Callable[..., Any]] = {}
        for number, block in enumerate(self.blocks):
            if number < view.first:
                patches[block.layer] = self._constant(block.layer, view.states)
            elif number >= last:
                patches[block.layer] = self._through(block.layer)
            else:
                patches |= _Follower(self, view, number).patches()
        with _patched(patches):
            yield

    def read(self, number: int, states: Tensor) -> Tensor:
        """What a layer's attention gets of `states`, the layer's input."""
        read = self._reads[number]
        assert read is not None
        return read(states)

    def shaped(self, part: nn.Module, states: Tensor) -> Any:
        """`states` in the form in which a part of a layer returns them."""
        extra = self._extra[part]
        return states if extra is None else (states, *[None] * extra)

    def gated(self, part: nn.Module, own: Callable[..., Any], runs: Runs, args: Any, kwargs: Any) -> Any:
        """What a sub-block returns, zero for the tokens that do not run it."""
        if runs is True:
            return own(*args, **kwargs)
        if runs is False:
            return self.shaped(part, torch.zeros_like(states_in(args, kwargs)))
        out = own(*args, **kwargs)
        states = states_of(out)
        kept = torch.where(runs.to(states.device).view(*states.shape[:-1], 1), states, 0)
        return kept if isinstance(out, Tensor) else (kept, *out[1:])

    def _noting(self, part: nn.Module) -> Callable[..., Any]:
        own = part.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = own(*args, **kwargs)
            if args or "hidden_states" in kwargs:
                self._given[part] = states_in(args, kwargs)
            self._said[part] = out
            self._extra[part] = len(out) - 1 if isinstance(out, tuple) else None
            return out

        return forward

    def _reading(self, block: Block) -> Callable[[Tensor], Tensor] | None:
        """What leads from the layer's input to attention's: nothing, or one part of the layer; None: neither."""
        entering, read = self._given[block.layer], self._given[block.attention]
        if read is entering:
            return lambda states: states
        for part in block.layer.children():
            if self._said.get(part) is read and self._given.get(part) is entering:
                return part
        return None

    def _constant(self, part: nn.Module, states: Tensor | None) -> Callable[..., Any]:
        assert states is not None
        return lambda *args, **kwargs: self.shaped(part, states)

    def _through(self, part: nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.shaped(part, states_in(args, kwargs))


class _Follower:
    """One layer in one pass, whose parts ask the view."""

    def __init__(self, steering: Steering, view: View, number: int) -> None:
        self.steering, self.view, self.number = steering, view, number
        self.block = steering.blocks[number]
        parts = (self.block.layer, self.block.attention, self.block.mlp)
        self._layer, self._attention, self._mlp = (part.forward for part in parts)
        self._entering: Tensor
        self._attended: Any = None
        self._fed = self._again = False

    def patches(self) -> dict[nn.Module, Callable[..., Any]]:
        """The forward functions of the layer and its parts."""
        block = self.block
        return {block.layer: self.run, block.attention: self.attend, block.mlp: self.feed}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self._entering = states_in(args, kwargs)
        out = self._layer(*args, **kwargs)
        if self._fed and self.view.listens:
            # What the layer adds around a sub-block (norms behind it, factors) only the layer knows. So it is gone
            # through once more, with what attention said and with nothing from the feed-forward sub-block.
            self._again = True
            before = states_of(self._layer(*args, **kwargs))
            self.view.fed(self.number, before.flatten(0, -2), states_of(out).flatten(0, -2))
        self.view.passed(self.number, self._entering.flatten(0, -2), states_of(out).flatten(0, -2))
        return out

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        if self._again:
            return self._attended
        runs = self.view.attends(self.number)
        reads = runs is not False or self.view.fills
        source = self.view.source(self.number, self._entering) if reads else self._entering
        if source is not self._entering:
            args, kwargs = _given(self.steering.read(self.number, source), args, kwargs)
        if runs is False and self.view.fills:
            _fill(self._attention, args, kwargs)
        out = self.steering.gated(self.block.attention, self._attention, runs, args, kwargs)
        self._attended = out
        return out

    def feed(self, *args: Any, **kwargs: Any) -> Any:
        runs = not self._again and self.view.feeds(self.number)
        self._fed = self._fed or runs is not False
        return self.steering.gated(self.block.mlp, self._mlp, runs, args, kwargs)


def states_in(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """The states among the arguments of a layer or sub-block."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def states_of(out: Any) -> Tensor:
    """The states in what a layer or sub-block returned."""
    states: Tensor = out if isinstance(out, Tensor) else out[0]
    return states


def _given(states: Tensor, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments with other states."""
    return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


class _Filled(Exception):
    """Keys and values are in the cache."""


def _fill(attention: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Run as much of a layer's attention as writes its keys and values."""
    cache: Any = next(given for given in (*args, *kwargs.values()) if isinstance(given, Cache))
    update = cache.update

    def last(*states: Any, **options: Any) -> None:
        update(*states, **options)
        raise _Filled

    cache.update = last
    try:
        attention(*args, **kwargs)
    except _Filled:
        pass
    finally:
        del cache.update


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
