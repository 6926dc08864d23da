"""Which law of drafts a drafter and a verifier agree on, or why on none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from paceline import registry
from paceline.drafters.draft import DraftModel
from paceline.drafters.ngram import NGram
from paceline.errors import Unsupported
from paceline.plan import LAWS, agreed
from paceline.registry import Guarantee, Method
from paceline.testing import TabularModel, random_table
from paceline.testing.drafters import TabularTree
from paceline.verifiers.base import Verifier
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.optimal import Optimal
from paceline.verifiers.specinfer import SpecInfer
from paceline.verifiers.spectr import SpecTr

METHODS = registry.methods("verifier")
VERIFIERS = [method.cls for method in METHODS]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_verifier_names_known_laws_and_lossless_ones_take_tokens_that_are_not_drawn(method: Method) -> None:
    assert set(method.cls.judges) <= set(LAWS)  # type: ignore[attr-defined]
    assert "fixed" in method.cls.judges or method.guarantee is Guarantee.LOSSY  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("verifier", "law"),
    [(Coupled(), "shared"), (SpecInfer(), "replacement"), (SpecTr(), "chains"), (Optimal(), "top")],
)
def test_the_verifiers_favourite_is_drafted(verifier: Verifier, law: str) -> None:
    assert agreed(TabularTree(random_table(3)), verifier) == law
    assert agreed(NGram(), verifier) == "fixed"


def test_a_draft_model_offers_what_every_verifier_wants() -> None:
    draft = DraftModel(TabularModel(random_table(3), 3))
    assert all(agreed(draft, verifier()) in draft.drafts for verifier in VERIFIERS)


@dataclass(frozen=True)
class Picky(Coupled):
    """A verifier of chains alone."""

    judges = ("chains",)


def test_without_a_law_in_common_the_reason_is_said() -> None:
    with pytest.raises(
        Unsupported, match=r"'Picky' judges tokens that are whole chains .* drafter 'ngram' drafts .* not drawn"
    ):
        agreed(NGram(), Picky())
