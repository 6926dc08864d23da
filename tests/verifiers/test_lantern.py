"""LANTERN: neighbours, the borrowed probability, and its bound."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.errors import BadRequest, Unsupported
from paceline.testing import TabularModel, random_table
from paceline.tree import TokenTree
from paceline.verifiers.lantern import Lantern

from .support import judged, pairs

#: Nearest first: 0 is near 1, 2 near 3.
TABLE = np.array([[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]])
MODEL: Any = TabularModel(random_table(4), 4)


def lantern(delta: float, neighbours: int = 3) -> Lantern:
    verifier = Lantern(delta=delta, neighbours=neighbours, table=TABLE)
    verifier.attach(MODEL)
    return verifier


def test_no_loan_is_exact() -> None:
    for p, q in pairs(2, 4):
        assert judged(lantern(0.0), p, q, (2,)).error < 1e-10


def test_more_is_accepted_the_more_may_be_borrowed() -> None:
    for p, q in pairs(4, 4, seed=1):
        by_delta = [judged(lantern(delta), p, q).accepted for delta in (0.0, 0.1, 0.3, 0.6, 1.0)]
        by_count = [judged(lantern(0.5, count), p, q).accepted for count in (1, 2, 3)]
        assert by_delta == sorted(by_delta)
        assert by_count == sorted(by_count)


def test_a_tokens_law_moves_by_at_most_delta() -> None:
    shifts = []
    for p, q in pairs(20, 4, seed=2):
        for delta in (0.05, 0.2, 0.5):
            for token in range(4):
                assert 0.5 * float((lantern(delta).relaxed(p, token) - p).abs().sum()) <= delta + 1e-12
        law = judged(lantern(0.2), p, q).law
        first = [sum(weight for text, weight in law.items() if text[0] == token) for token in range(4)]
        shifts.append(0.5 * float((torch.tensor(first).double() - p).abs().sum()))
    assert 0 < max(shifts) < 4 * 0.2


def test_above_one_delta_is_a_multiple_of_the_tokens_own_probability() -> None:
    p = torch.tensor([0.2, 0.25, 0.1, 0.45]).double()
    assert lantern(2.0).relaxed(p, 0).tolist() == pytest.approx(p.tolist())
    assert lantern(2.3).relaxed(p, 0).tolist() == pytest.approx([0.45, 0, 0.1, 0.45])


def test_a_token_ruled_out_borrows_nothing() -> None:
    p = torch.tensor([0.0, 0.5, 0.5, 0.0]).double()
    assert lantern(1.0).relaxed(p, 0).tolist() == p.tolist()


def test_greedily_a_token_may_become_the_best() -> None:
    logp = torch.tensor([0.3, 0.25, 0.1, 0.35]).log().expand(2, -1)
    tree = TokenTree.chain(0, [0])
    assert lantern(0.0).verify_greedy(tree, logp).path == [0]
    found = lantern(0.3).verify_greedy(tree, logp)
    assert (found.path, found.bonus) == ([0, 1], 3)


def test_distances_of_the_embedding() -> None:
    table = torch.nn.Embedding.from_pretrained(torch.tensor([[0.0], [1.0], [5.0], [5.5]]))
    target: Any = SimpleNamespace(vocab_size=4, name="t", module=SimpleNamespace(get_input_embeddings=lambda: table))
    verifier = Lantern(neighbours=3, table="embedding")
    verifier.attach(target)
    assert [verifier.near(token).tolist() for token in range(4)] == [[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 4, "table": TABLE}, "neighbours=4"),
        ({"neighbours": 3, "table": TABLE[:, :2]}, "shape"),
        ({"neighbours": 3, "table": TABLE.astype(float)}, "integers"),
        ({"neighbours": 3, "table": TABLE + 1}, "ids from 1 to 4"),
        ({"neighbours": 3, "table": np.argsort(TABLE * 0)[:, :3] * 0}, "its own neighbours"),
        ({"neighbours": 3, "table": "no such file.npy"}, "cannot be read"),
        ({"neighbours": 3, "table": object()}, "is no array"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Lantern(**options).attach(MODEL)


def test_a_table_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "near.npy", TABLE)
    verifier = Lantern(neighbours=2, table=str(tmp_path / "near.npy"))
    verifier.attach(MODEL)
    assert verifier.near(3).tolist() == [2, 1]


def test_a_model_without_embedding_needs_a_table() -> None:
    with pytest.raises(Unsupported, match="give a table"):
        Lantern(neighbours=2, table="embedding").attach(MODEL)


def test_distances_are_never_taken_for_granted() -> None:
    table = torch.nn.Embedding(4, 2)
    target: Any = SimpleNamespace(vocab_size=4, name="t", module=SimpleNamespace(get_input_embeddings=lambda: table))
    with pytest.raises(BadRequest, match=r"give table=.*or table='embedding'"):
        Lantern(neighbours=2).attach(target)


@pytest.mark.parametrize("options", [{"delta": -0.1}, {"neighbours": 0}])
def test_bad_knobs_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="lantern"):
        Lantern(**options)
