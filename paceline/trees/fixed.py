"""A tree of fixed shape: rank paths, as in the static trees of Medusa and EAGLE.

The child of rank r is its parent's r-th guess: the r-th best token when nothing is drawn, otherwise the r-th sibling
drawn (or ranked by the shared noise). The default is EAGLE's published tree of 25 nodes, five levels deep. Where the
budget is smaller, the nodes with the greatest product of `ACCEPTANCE[rank]` along the path stay.

Paper: Li et al., "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.trees.base import Plan, StaticTree, planned
from paceline.trees.paths import parse_paths

#: The published tree.
PUBLISHED = "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"
#: A rough chance that the sibling of a rank is the accepted one; it orders nodes until something better is known.
ACCEPTANCE = (0.6, 0.15, 0.06, 0.03, 0.02, 0.015, 0.01, 0.008, 0.006, 0.005)


@method(
    name="fixed",
    kind="tree",
    guarantee=Guarantee.LOSSLESS,
    summary="A static tree of rank paths; by default EAGLE's published 25 nodes.",
    paper="EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
    year=2024,
)
@dataclass(eq=False)
class FixedTree(StaticTree):
    """Rank paths.

    Attributes:
        paths: such as `"0 1 00"`, a digit a level; every rank below a path's last must be there too.
    """

    paths: str = PUBLISHED

    def __post_init__(self) -> None:
        where = f"fixed(paths={self.paths!r})"
        known = set(parse_paths(str(self.paths), where))
        for path in sorted(known):
            if path[-1] != "0" and f"{path[:-1]}{int(path[-1]) - 1}" not in known:
                raise BadRequest(f"{where}: {path!r} lacks its elder sibling {path[:-1]}{int(path[-1]) - 1}")
        ranked = sorted(known, key=lambda path: (-prod(ACCEPTANCE[int(rank)] for rank in path), len(path), path))
        self._paths = tuple(tuple(int(rank) for rank in path) for path in ranked)
        self.shape = "tree" if any(path[-1] for path in self._paths) else "chain"

    def plan(self, nodes: int, depth: int) -> Plan:
        return planned(self._paths, nodes, depth)
