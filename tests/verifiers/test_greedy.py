"""Greedy decoding: whatever tree is drafted, the text is that of one token after the other, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exact.cases import VERIFIERS
from hypothesis import given
from hypothesis import strategies as st

from paceline import Engine
from paceline.chance import SeededChance
from paceline.testing import TabularModel
from paceline.testing.drafters import Fixed, Hostile
from paceline.testing.running import finish, submit
from paceline.tree import TokenTree

VOCABULARY, END = 4, 3


def ties(prefix: tuple[int, ...]) -> torch.Tensor:
    """Two best tokens after most prefixes."""
    generator = np.random.default_rng((5, *prefix))
    return torch.from_numpy(generator.integers(3, size=VOCABULARY).astype(float)).log_softmax(-1)


MODEL = TabularModel(ties, VOCABULARY, end_tokens=[END])
DRAFTERS: dict[str, Any] = {
    "twins, and beyond the end": Fixed((0, 1, 2, 3, 0, 1, 0, 3, 2, 1), (0, 0, 0, 0, 1, 1, 1, 2, 8, 9)),
    "random trees": Hostile(VOCABULARY, nodes=9),
    "random chains": Hostile(VOCABULARY, chain=True),
}


def text(prompt: list[int], **parts: Any) -> list[int]:
    engine = Engine(MODEL, drafter="none", nodes=12)
    (record,) = submit(engine, prompt, max_new_tokens=9, **parts)
    finish(engine)
    assert record.error is None
    return record.tokens[len(prompt) :]


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_text_is_that_of_the_plain_loop(verifier: str, drafter: str) -> None:
    if "chains" not in drafter and "tree" not in VERIFIERS[verifier].shapes:
        pytest.skip("judges chains")
    for first in range(3):
        for second in range(3):
            plain: list[int] = []
            while len(plain) < 9 and END not in plain:
                plain.append(int(np.argmax(ties((first, second, *plain)).numpy())))
            assert text([first, second], drafter=DRAFTERS[drafter], verifier=VERIFIERS[verifier]) == plain


@given(st.data())
def test_the_walk_is_the_deepest_node_that_was_chosen_all_the_way(data: st.DataObject) -> None:
    drafted = data.draw(st.integers(0, 10))
    parents = [-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, drafted + 1))]
    tokens, chosen = (data.draw(st.lists(st.integers(0, 2), min_size=drafted + 1, max_size=drafted + 1)) for _ in "tc")
    tree = TokenTree(np.array(tokens), np.array(parents))
    first: dict[tuple[int, int], int] = {}
    for node in range(1, drafted + 1):
        first.setdefault((parents[node], tokens[node]), node)
    alive = {0}
    for node in range(1, drafted + 1):
        if parents[node] in alive and tokens[node] == chosen[parents[node]] and node in first.values():
            alive.add(node)
    found = VERIFIERS["coupled"].walk(tree, chosen, SeededChance(0), 0)
    assert found.path[-1] == max(alive, key=lambda node: tree.depth[node])
    assert found.bonus == chosen[found.path[-1]]
