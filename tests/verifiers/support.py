"""Two laws with known rates, and trees and steps made of such laws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from exact.steps import Step, step

from paceline.chance import SeededChance
from paceline.testing.drafters import TabularTree
from paceline.testing.tabular import Table
from paceline.tree import Draws, TokenTree
from paceline.verifiers import Verdict, Verifier

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def always(law: torch.Tensor) -> Table:
    """The same law after every prefix."""
    return lambda prefix: law.log()


def judged(verifier: Verifier, p: torch.Tensor, q: torch.Tensor, branching: tuple[int, ...] = (1,)) -> Step:
    """A step whose target and draft do not look at the text."""
    return step(verifier, TabularTree(always(q), branching), always(p), len(p), len(branching))


def pairs(count: int, vocabulary: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random laws p and q."""
    generator = np.random.default_rng(seed)
    return [tuple(torch.from_numpy(generator.dirichlet(np.ones(vocabulary), 2))) for _ in range(count)]  # type: ignore[misc]


def drawn(tokens: Sequence[int], laws: torch.Tensor, rows: Sequence[int], parents: Sequence[int]) -> TokenTree:
    """A tree of drawn tokens under root 0; `rows[i]` is the law of `tokens[i]`."""
    return TokenTree(np.array([0, *tokens]), np.array([-1, *parents]), Draws(laws.log(), np.array([-1, *rows])))


def verdict(verifier: Verifier, tree: TokenTree, p: torch.Tensor, seed: int = 0) -> Verdict:
    return verifier.verify(tree, p.log().expand(len(tree), -1), SeededChance(seed), 0)
