"""How far relaxed verifiers move the law of the next token, by enumeration of every draft and coin.

`pytest -s tests/verifiers/test_realised.py` prints the lines that stand in `docs/verifiers.md`, which must be the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.testing import TabularModel, random_table
from paceline.verifiers import Verifier
from paceline.verifiers.lantern import Lantern
from paceline.verifiers.typical import TypicalAcceptance

from .support import judged, pairs

VOCABULARY, PAIRS = 5, pairs(40, 5, seed=3)
#: Tokens on a line: the nearest ones first.
NEAR = [sorted(set(range(VOCABULARY)) - {token}, key=lambda other: abs(other - token)) for token in range(VOCABULARY)]
PAGE = Path(__file__).parents[2] / "docs" / "verifiers.md"


def lantern(delta: float) -> Lantern:
    verifier = Lantern(delta=delta, neighbours=VOCABULARY - 1, table=NEAR)
    verifier.attach(TabularModel(random_table(VOCABULARY), VOCABULARY))
    return verifier


SETTINGS: dict[str, Verifier] = {
    **{f"`lantern(delta={delta})`": lantern(delta) for delta in (0.0, 0.05, 0.1, 0.2, 0.5, 1.5)},
    **{
        f"`typical(epsilon={epsilon}, delta={delta})`": TypicalAcceptance(epsilon, delta)
        for epsilon, delta in ((1.0, 5.0), (0.3, 0.6), (0.09, 0.3), (0.01, 0.1))
    },
}


def line(name: str) -> str:
    """Accepted drafts, and the mean and the largest total variation distance to the target's law."""
    distances, accepted = [], 0.0
    for p, q in PAIRS:
        found = judged(SETTINGS[name], p, q)
        first = [sum(weight for text, weight in found.law.items() if text[0] == x) for x in range(VOCABULARY)]
        distances.append(0.5 * sum(abs(weight - float(share)) for weight, share in zip(first, p, strict=True)))
        accepted += found.accepted / len(PAIRS)
    mean = sum(distances) / len(distances)
    return f"| {name} | {accepted:.3f} | {mean:.3f} | {max(distances):.3f} |"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_page_says_how_far_the_law_moves(name: str) -> None:
    print(f"\n{line(name)}")
    assert line(name) in PAGE.read_text(encoding="utf-8").splitlines()
