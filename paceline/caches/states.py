"""Rows of recurrent state: what a row was can be had again, but not several continuations side by side.

Keys and values of attention are a list that can be cut; the state of a recurrent or convolutional layer is a summary
that every token overwrites. So before a pass that may have to be taken back, a row keeps a *checkpoint*: a copy of its
recurrent states, and for attention layers the length alone. Where a draft is not accepted in whole, the checkpoint is
put back, and the tokens that did hold are read again by the next pass, in front of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from paceline.caches.rows import Row
from paceline.errors import Unsupported

#: Checkpoints kept a row: a draft model is taken back by as many tokens as it drafted, one a pass.
KEPT = 8


@dataclass(frozen=True)
class Checkpoint:
    """A row's state after `length` tokens; `layers` holds the attributes of each layer, recurrent states copied."""

    length: int
    layers: list[dict[str, Any]]


@dataclass(eq=False)
class StateRow(Row):
    """One sequence.

    Attributes:
        tokens: committed tokens, `trunk` of them.
        crown: tokens of the pass that is being judged, a chain.
        state: a transformers cache after the first `seen` of both; `None` before any.
        saved: checkpoints, in ascending order.
    """

    tokens: list[int] = field(default_factory=list)
    crown: list[int] = field(default_factory=list)
    state: DynamicCache | None = None
    seen: int = 0
    saved: list[Checkpoint] = field(default_factory=list)

    @property
    def unseen(self) -> list[int]:
        """Tokens that the state does not hold yet."""
        return [*self.tokens, *self.crown][self.seen :]

    def save(self) -> None:
        """Keep a checkpoint of the state as it is."""
        if self.state is not None and self.seen:
            self.saved.append(Checkpoint(self.seen, [_held(layer) for layer in self.state.layers]))
            del self.saved[:-KEPT]

    def back(self, length: int) -> None:
        """Go back to the last state that holds at most `length` tokens."""
        if self.seen <= length:
            return
        while self.saved and self.saved[-1].length > length:
            self.saved.pop()
        if not self.saved or self.state is None:
            self.state, self.seen = None, 0
            return
        checkpoint = self.saved.pop()
        layers: list[Any] = self.state.layers
        for layer, held in zip(layers, checkpoint.layers, strict=True):
            vars(layer).update(held)
            if "keys" not in held and _grows(layer):
                layer.keys = layer.keys[..., : checkpoint.length, :]
                layer.values = layer.values[..., : checkpoint.length, :]
        self.seen = checkpoint.length


class StateCache:
    """Rows of state behind the calls of a `TrieCache` that chains need.

    Args:
        rows: most rows that may be live at once.
        limit: most committed tokens and live nodes a row may hold.
    """

    def __init__(self, rows: int, limit: int) -> None:
        self.max_rows, self.limit = rows, limit
        self.live: list[StateRow] = []

    def allocate(self) -> StateRow:
        """A fresh row. Raises `RuntimeError` if all are taken."""
        if len(self.live) == self.max_rows:
            raise RuntimeError(f"cache: all {self.max_rows} rows are in use")
        row = StateRow(len(self.live))
        self.live.append(row)
        return row

    def free(self, row: StateRow) -> None:
        """Release a row."""
        last = self.live.pop()
        if last is not row:
            last.index = row.index
            self.live[row.index] = last

    def copy(self, source: StateRow, target: StateRow) -> None:
        """Nothing is copied: the source's state has moved on beyond what the two share."""

    def keep(self, row: StateRow, path: Sequence[int]) -> None:
        """Commit the first `len(path)` tokens of the crown and forget the rest.

        Raises:
            ValueError: `path` is not the beginning of the crown.
        """
        if list(path) != list(range(len(path))) or len(path) > len(row.crown):
            raise ValueError(f"path: {list(path)} is not the beginning of a chain of {len(row.crown)} nodes")
        row.tokens += row.crown[: len(path)]
        self.crop(row, len(row.tokens))

    def retain(self, row: StateRow, nodes: Sequence[int]) -> list[int]:
        raise Unsupported("cache: a recurrent state cannot keep several branches alive")

    def crop(self, row: StateRow, trunk: int) -> None:
        """Forget the crown and every committed token from `trunk` on."""
        del row.tokens[trunk:]
        row.crown, row.parents, row.trunk = [], [], len(row.tokens)
        row.back(row.trunk)

    @property
    def nbytes(self) -> int:
        """Bytes of states, keys and values, checkpoints included."""
        states = [vars(layer) for row in self.live if row.state is not None for layer in row.state.layers]
        kept = [held for row in self.live for checkpoint in row.saved for held in checkpoint.layers]
        tensors = {id(t): t for attributes in states + kept for t in _tensors(attributes)}
        return sum(tensor.nbytes for tensor in tensors.values())


def _grows(layer: Any) -> bool:
    """Whether its keys and values are the list of all tokens, which can be cut."""
    return isinstance(layer, DynamicLayer) and not isinstance(layer, DynamicSlidingWindowLayer)


def _held(layer: Any) -> dict[str, Any]:
    """A layer's attributes. Recurrent states, kept in dictionaries, are overwritten in place, other tensors are not."""
    grown = ("keys", "values") if _grows(layer) else ()
    return {
        name: {key: part.clone() if isinstance(part, torch.Tensor) else part for key, part in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in vars(layer).items()
        if name not in grown
    }


def _tensors(attributes: dict[str, Any]) -> list[torch.Tensor]:
    parts = [part for value in attributes.values() for part in (value.values() if isinstance(value, dict) else [value])]
    return [part for part in parts if isinstance(part, torch.Tensor)]
