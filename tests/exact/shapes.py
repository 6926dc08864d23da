"""Drafts of one step: small enough to enumerate, large enough to tell right from wrong, for every lossless verifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from exact.steps import Step, step
from paceline.testing import random_table
from paceline.testing.drafters import TabularTree
from paceline.verifiers import Verifier


@dataclass(frozen=True)
class Shape:
    """A random target, and a random draft that is drawn as the verifier likes it best.

    Attributes:
        vocabulary: V.
        branching: children of a node by depth.
        zeros: how many tokens the draft's law rules out, by depth; which ones differs between prefixes.
        law: what the tokens follow instead.
        ruled_out: how many tokens the target's law rules out.
        seed: of the draft.
    """

    vocabulary: int
    branching: tuple[int, ...]
    zeros: tuple[int, ...] = (0,)
    law: str | None = None
    ruled_out: int = 0
    seed: int = 2

    def draft(self, prefix: tuple[int, ...]) -> Any:
        """The draft's law after a prefix, whose first token is the text's."""
        zeros = self.zeros[min(len(prefix), len(self.zeros)) - 1]
        return random_table(self.vocabulary, self.seed, zeros)(prefix)

    def judged_by(self, verifier: Verifier) -> Step:
        target = random_table(self.vocabulary, 11, self.ruled_out)
        drafter = TabularTree(cache(self.draft), self.branching, self.law)
        return step(verifier, drafter, target, self.vocabulary, len(self.branching))

    @property
    def support(self) -> int:
        """Least number of tokens that a node's children are drawn from."""
        prefixes = (
            (0, *path) for depth in range(len(self.branching)) for path in product(range(self.vocabulary), repeat=depth)
        )
        return min(int(self.draft(prefix).isfinite().sum()) for prefix in prefixes)

    def __str__(self) -> str:
        drawn = self.law or "drawn"
        return f"{drawn} {'x'.join(map(str, self.branching))} of {self.vocabulary}, {self.zeros}{self.ruled_out}"


#: Three children of every node on two levels that are not drawn: the most likely tokens.
FIXED = tuple(Shape(vocabulary, (3, 3), law="fixed", seed=3) for vocabulary in (3, 4, 5))
#: The same drawn, cheap ones first; of every vocabulary one has at least three different tokens to draw at every node.
#: Vocabularies 4 and 5 have laws with zeros where the whole would take too long.
TREES: dict[str, tuple[Shape, ...]] = {
    "recursive": (
        Shape(4, (3,), seed=12),
        Shape(3, (3, 3)),
        Shape(4, (3, 3), ruled_out=1),
        Shape(5, (3,)),
        Shape(5, (3, 3), (0, 1), ruled_out=1),
    ),
    "sequoia": (
        Shape(4, (3,), seed=12),
        Shape(3, (3, 3), seed=5),
        Shape(4, (3, 3), (0, 1), ruled_out=1, seed=5),
        Shape(5, (3,), seed=5),
        Shape(5, (3, 3), (1, 1), ruled_out=1, seed=5),
        Shape(3, (3, 2), (1, 2), seed=5),
        Shape(4, (3, 3), (2, 2), ruled_out=1, seed=5),
        Shape(5, (4,), (3,), seed=5),
    ),
    "specinfer": (
        Shape(4, (3,), seed=12),
        Shape(3, (2, 1)),
        Shape(4, (3, 3), (2, 2), ruled_out=1),
        Shape(3, (3, 3)),
        Shape(5, (3,), ruled_out=1),
        Shape(4, (3, 3), (1, 1), ruled_out=1, seed=5),
        Shape(5, (3, 3), (2, 2), ruled_out=1, seed=7),
    ),
    "spectr": (
        Shape(3, (2, 1)),
        Shape(4, (3,), seed=12),
        Shape(3, (3, 3)),
        Shape(4, (3, 3), (0, 1), ruled_out=1),
        Shape(5, (3,)),
        Shape(5, (3, 3), (2, 2), ruled_out=1),
    ),
    "optimal": (
        Shape(4, (3,), seed=12),
        Shape(3, (3, 3)),
        Shape(4, (3, 3), ruled_out=1),
        Shape(5, (3, 3)),
        Shape(5, (3, 3), (1, 2), ruled_out=1),
    ),
    "coupled": (Shape(4, (3,)), Shape(3, (3, 3)), Shape(4, (3, 3), (1,)), Shape(5, (3, 3), (2,))),
}
#: Chains, whose verifiers judge no trees.
CHAINS: dict[str, tuple[Shape, ...]] = {
    name: (
        Shape(3, (1, 1, 1)),
        Shape(2, (1, 1, 1, 1)),
        Shape(4, (1, 1)),
        Shape(4, (1, 1, 1), (0, 1, 2), ruled_out=1),
        Shape(5, (1, 1), ruled_out=1),
    )
    for name in ("rejection", "block")
}
SHAPES: dict[str, tuple[Shape, ...]] = {**TREES, **CHAINS}
