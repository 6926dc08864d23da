"""Views: a pass that runs only some parts of a model, on the model's own weights and its own cache.

A decoder layer is two sub-blocks on a residual stream, `x <- x + attention(x)` and `x <- x + mlp(x)`; a sub-block that
is left out adds nothing. A `View` says, for one pass, which sub-blocks run, and with which input. Both forward passes
take one: the fused one asks it layer by layer, a transformers module is steered (`paceline.models.steering`).

A view writes keys and values only in the layers whose attention it runs. The rule that keeps it from reading what was
never written: **a node attends in a layer only where every slot that it sees was written in that layer.** Self-drafts
keep it because they see the trunk, which the whole model wrote, and nodes that the same view wrote in the same draft;
these are dropped before anything else reads them. Lossy views keep it because the layers of a later token are among
those of every earlier one, or because the view fills what it leaves out: each layer's norm and projection make keys and
values of the state that the token has, though nothing attends for it. `Watched` makes sure of that in every pass.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.errors import BadRequest, Unsupported

#: Whether a sub-block runs: for all tokens, for none, or for those marked in a flat bool tensor `[B * T]`.
Runs = bool | Tensor


class View:
    """The whole model; subclasses leave something out. Layers count from 0.

    Attributes:
        first: layers before it do not run; `states`, `[B, T, d]`, take the place of their output.
        last: layers from it on do not run; None: all do.
        fills: tokens whose attention is left out leave keys and values all the same, those of what it would have read.
            Layers before `first` and from `last` on stay empty.
    """

    first: int = 0
    last: int | None = None
    states: Tensor | None = None
    fills: bool = False

    def check(self, layers: int) -> None:
        """Raises `BadRequest` if a model of so many layers cannot be run by it."""

    def attends(self, layer: int) -> Runs:
        """Whether the layer's attention runs; where it does not, no keys and values may be read, unless it `fills`."""
        return True

    def feeds(self, layer: int) -> Runs:
        """Whether the layer's feed-forward sub-block runs."""
        return True

    def source(self, layer: int, x: Tensor) -> Tensor:
        """What the layer's attention reads, in front of its norm if it has one, given the residual stream `x`."""
        return x

    def fed(self, layer: int, before: Tensor, after: Tensor) -> None:
        """The residual stream `[B * T, d]` before and after a feed-forward sub-block that ran.

        They are the same for tokens that did not run it. In a layer whose sub-blocks stand side by side, `before` has
        what attention added.
        """

    def passed(self, layer: int, before: Tensor, after: Tensor) -> None:
        """The residual stream `[B * T, d]` before and after a whole layer, the same where neither sub-block ran."""

    @property
    def redirects(self) -> bool:
        """Whether it may have a say in `source`."""
        return getattr(self.source, "__func__", None) is not View.source

    @property
    def listens(self) -> bool:
        """Whether it wants to be told in `fed`."""
        return getattr(self.fed, "__func__", None) is not View.fed


class ViewRule(ABC):
    """A way to run a model that follows from how far a text is. Subclasses are dataclasses: their fields are the knobs.

    A token's attention may run only in layers in which that of all earlier tokens runs, for their keys are nowhere
    else, or in which the view `fills` what is left out.
    """

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

    def check(self, layers: int) -> None:
        if not 1 <= self.layer <= layers:
            raise BadRequest(f"view: no exit behind {self.layer} layers; the model has {layers}, 1 to {layers} may run")


@dataclass(eq=False)
class Resume(View):
    """Only the layers from `layer` on, given the states `[B, T, d]` that enter it."""

    layer: int
    entering: Tensor

    def __post_init__(self) -> None:
        self.first, self.states = self.layer, self.entering

    def check(self, layers: int) -> None:
        if not 0 <= self.layer <= layers:
            raise BadRequest(f"view: no layer {self.layer} to resume from; the model has {layers}")


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
        unknown = [layer for layer in (*self.attention, *self.mlp) if not 0 <= layer < layers]
        if unknown:
            raise BadRequest(f"view: layer {min(unknown)} cannot be skipped; the model has layers 0 to {layers - 1}")
        if len(self.attention) == len(self.mlp) == layers:
            raise BadRequest(f"view: all {layers} layers would be skipped; keep at least one sub-block")


class Chosen(View):
    """Whole layers, chosen for each token.

    Args:
        runs: `[layers, B * T]` bool, which layers a token goes through.
    """

    def __init__(self, runs: np.ndarray) -> None:
        self._runs: list[Runs] = [bool(row[0]) if (row == row[0]).all() else torch.from_numpy(row) for row in runs]

    def __repr__(self) -> str:
        return f"Chosen({[runs if isinstance(runs, bool) else runs.tolist() for runs in self._runs]})"

    def check(self, layers: int) -> None:
        if len(self._runs) != layers:
            raise BadRequest(f"view: {len(self._runs)} layers are told apart; the model has {layers}")
        if not any(runs is not False for runs in self._runs):
            raise BadRequest(f"view: all {layers} layers would be skipped; keep at least one")

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

    def check(self, layers: int) -> None:
        if self.size < 1:
            raise BadRequest(f"view: groups of {self.size} layers; at least 1 is needed")

    def source(self, layer: int, x: Tensor) -> Tensor:
        if layer in self.exact:
            self._filled = 0
            return x
        if layer == 0 or self._filled in (0, self.size):
            self._entered, self._filled = x, 0
        self._filled += 1
        return self._entered


class Watched(ViewRule):
    """A rule that is held to its word: no token attends in a layer in which an earlier one wrote nothing.

    Of each layer it is kept how early in a text attention was left out, and how late it ran, in any text so far. The
    passes' views compare the two before attention runs, so a key that was never written is never read.

    Args:
        rule: what is followed.
    """

    def __init__(self, rule: ViewRule) -> None:
        self.rule = rule
        self._out: dict[int, int] = {}
        self._in: dict[int, int] = {}

    def check(self, layers: int) -> None:
        self.rule.check(layers)

    def view(self, generated: np.ndarray, layers: int) -> View:
        view = self.rule.view(generated, layers)
        view.check(layers)
        last = layers if view.last is None else view.last
        for layer in (*range(view.first), *range(last, layers)):
            self.note(layer, False, generated)
        return _Watching(self, view, generated)

    def note(self, layer: int, runs: Runs, generated: np.ndarray) -> None:
        """Take note of which of a pass's tokens attend in a layer. Raises `Unsupported` if one may not."""
        if isinstance(runs, bool):
            ran, left = (generated, generated[:0]) if runs else (generated[:0], generated)
        else:
            marks = runs.cpu().numpy()
            ran, left = generated[marks], generated[~marks]
        late = self._in[layer] = int(ran.max(initial=self._in.get(layer, -sys.maxsize)))
        early = self._out[layer] = int(left.min(initial=self._out.get(layer, sys.maxsize)))
        if late > early:
            raise Unsupported(
                f"view: {self.rule} lets layer {layer} attend behind {late} generated tokens, but left it out behind "
                f"{early}, where it has no keys; the layers of a token must be among those of all earlier ones"
            )


class _Watching(View):
    """The view of one pass of a watched rule."""

    def __init__(self, watched: Watched, view: View, generated: np.ndarray) -> None:
        self.watched, self.view, self.generated = watched, view, generated
        self.first, self.last, self.states, self.fills = view.first, view.last, view.states, view.fills
        self.feeds, self.source = view.feeds, view.source  # type: ignore[method-assign]
        self.fed, self.passed = view.fed, view.passed  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return repr(self.view)

    def attends(self, layer: int) -> Runs:
        runs = self.view.attends(layer)
        # What is filled in may be read like what attention wrote.
        self.watched.note(layer, self.fills or runs, self.generated)
        return runs


def require_views(model: Any, part: str) -> None:
    """Refuse a model whose layers cannot be left out one by one. Raises `Unsupported`, naming `part`."""
    if "views" not in model.offers:
        unknown = "its attention and feed-forward sub-blocks are not laid out in a known way"
        reason = model.lacks.get("views", unknown)
        raise Unsupported(f"{part} runs only some layers of {model.name}, which does not offer views: {reason}")
