"""Handles of a trie cache's rows, and of the new nodes that a forward pass is about to write."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(eq=False)
class Row:
    """Handle of one cache row. `index` may change when other rows are freed.

    Attributes:
        trunk: committed slots.
        parents: parent of each crown node: an earlier crown node, or -1 for the tip of the trunk.
        prompt: how many of the first tokens were given; what follows was generated.
    """

    index: int
    trunk: int = 0
    parents: list[int] = field(default_factory=list)
    prompt: int = 0

    @property
    def length(self) -> int:
        return self.trunk + len(self.parents)

    @property
    def is_chain(self) -> bool:
        """Whether the crown is a chain behind the trunk."""
        return self.parents == list(range(-1, len(self.parents) - 1))

    def depths(self) -> list[int]:
        """Depth of each crown node; children of the trunk's tip have depth 0."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths


@dataclass(frozen=True)
class Extension:
    """New nodes of neighbouring rows, ready for one forward pass.

    Attributes:
        first: index of the first row.
        starts: `[B]` first new slot of each row.
        counts: `[B]` new nodes of each row.
        width: T, new slots a row (rows with fewer nodes are padded).
        length: S, slots that attention looks at.
        positions: `[B, T]` int64 position ids.
        visible: `[B, T, S]` bool, which slots a node attends to.
        slot_positions: `[B, S]` int64 position of each slot (for sliding windows).
    """

    first: int
    starts: list[int]
    counts: list[int]
    width: int
    length: int
    positions: np.ndarray
    visible: np.ndarray
    slot_positions: np.ndarray

    @cached_property
    def real(self) -> np.ndarray | None:
        """Which of the B x T places hold nodes, where some are padding; None: all do."""
        if min(self.counts) == self.width:
            return None
        return np.flatnonzero(np.arange(self.width) < np.array(self.counts)[:, None])

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Row of the B and slot of every node, `[N]` each."""
        counts = np.array(self.counts)
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return np.repeat(np.arange(len(counts)), counts), np.repeat(self.starts, counts) + within

    def window(self, size: int) -> np.ndarray:
        """`visible` restricted to the last `size` positions, the node's own included."""
        reach = self.slot_positions[:, None, :] > self.positions[:, :, None] - size
        return self.visible & reach
