"""What goes into a forward pass over trees, and what comes out of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from paceline.caches import Row
from paceline.tree import TokenTree


@dataclass(frozen=True)
class Scores:
    """Logits of one forward pass over several trees.

    Attributes:
        logits: `[total, V]` float32, the trees' nodes one after the other.
        starts: where each tree's nodes begin in `logits`, and the total at the end.
        hidden: `{layer: [total, d]}` as asked for.
    """

    logits: torch.Tensor
    starts: list[int]
    hidden: dict[int, torch.Tensor]

    def of(self, i: int) -> torch.Tensor:
        """`[len(tree i), V]`."""
        return self.logits[self.starts[i] : self.starts[i + 1]]

    def hidden_of(self, i: int) -> dict[int, torch.Tensor]:
        """`{layer: [len(tree i), d]}`."""
        return {layer: states[self.starts[i] : self.starts[i + 1]] for layer, states in self.hidden.items()}


@dataclass(frozen=True)
class Nodes:
    """New nodes of one row's crown.

    Attributes:
        tokens: `[n]` int64.
        parents: `[n]` int64, an earlier crown node (counting those already live first), or -1: the trunk's tip.
        skip: leading nodes that are only written; nobody wants their logits.
    """

    tokens: np.ndarray
    parents: np.ndarray
    skip: int = 0

    @classmethod
    def none(cls) -> Nodes:
        """No nodes, of a row that others share a pass with."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def behind(cls, row: Row, tree: TokenTree, before: Seq[int]) -> Nodes:
        """A tree at the tip of a row's trunk, under a chain of further tokens."""
        base, skip = len(row.parents), len(before)
        if not base and not skip:
            return cls(tree.tokens, tree.parents)
        parents = np.concatenate([np.arange(-1, skip - 1), tree.parents + skip])
        parents[parents >= 0] += base
        return cls(np.concatenate([np.asarray(before, np.int64), tree.tokens]), parents, skip)

    def __len__(self) -> int:
        """Nodes that give logits."""
        return len(self.tokens) - self.skip


def laid_out(nodes: Seq[Nodes], width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens of a pass, `[B, width]` int64, and the flat indices of those that give logits; None: all do."""
    tokens = np.zeros((len(nodes), width), np.int64)
    for b, new in enumerate(nodes):
        tokens[b, : len(new.tokens)] = new.tokens
    if starts_of(nodes)[-1] == tokens.size:
        return torch.from_numpy(tokens), None
    flat = [np.arange(b * width + new.skip, b * width + len(new.tokens)) for b, new in enumerate(nodes)]
    return torch.from_numpy(tokens), torch.from_numpy(np.concatenate(flat))


def starts_of(nodes: Seq[Nodes]) -> list[int]:
    """Where the logits of each row's nodes begin, and the total at the end."""
    return list(itertools.accumulate((len(new) for new in nodes), initial=0))
