"""Lexical units: placeholder tokens behind the text ask the model for several tokens at once.

A model fine-tuned for it answers a placeholder with the token that belongs there: some tokens, such as the rest of a
word, are certain from its beginning. The draft is a chain under the root,

    root g1 .. gj  P .. P        g: what the placeholders of the last pass said; P: placeholders, for the next

Where all guesses hold, the answers at the placeholders are the next guesses; where one does not, its placeholders stood
behind a wrong text and the next draft is placeholders alone. So every token is verified: lossless under any lossless
verifier, whatever the model was trained for. The verifier `lexical` takes answers it is sure of at once instead: that
is the decoding of the paper, and lossy.

A model that was not trained for it answers placeholders badly. How many placeholders the
paper takes, and where they stand in training, is not confirmed; here they follow the last known token.

Paper: Sun et al., "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import takewhile

from paceline.budgets import check_budgets
from paceline.drafters.base import Outcome
from paceline.drafters.jacobi import Iterated
from paceline.drafters.vocabulary import tokenizer_of
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree


def placeholder_of(target: CausalModel, given: int | None) -> int:
    """The token that stands for one not yet known: the one given, else the model's or its tokenizer's padding token.

    Raises:
        BadRequest: there is none, or it is not in the vocabulary.
    """
    token = given
    for source in (getattr(target, "config", None), tokenizer_of(target)):
        token = getattr(source, "pad_token_id", None) if token is None else token
    if token is None:
        raise BadRequest(f"lexical: {target.name} has no padding token; name one with placeholder=")
    if not 0 <= token < target.vocab_size:
        raise BadRequest(f"lexical(placeholder={token}): an id from 0 to {target.vocab_size - 1} is needed")
    return token


@method(
    name="lexical",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Placeholder tokens behind the text ask a model trained for it for several tokens at once.",
    paper="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    year=2024,
    needs={"placeholder"},
)
@dataclass(eq=False)
class LexicalUnits(Iterated):
    """Drafting with placeholders.

    Attributes:
        pads: placeholders a pass, 1 or more.
        placeholder: their token; by default the padding token.
    """

    pads: int = 4
    placeholder: int | None = None

    def __post_init__(self) -> None:
        if self.pads < 1:
            raise BadRequest(f"lexical(pads={self.pads}): an integer of at least 1 is needed")
        self._token = -1

    def attach(self, target: CausalModel) -> None:
        check_budgets("lexical", self, target, "pads")
        self._token = placeholder_of(target, self.placeholder)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        trees = []
        for sequence, limits in zip(sequences, budget, strict=True):
            chain = [*sequence.drafts, *[self._token] * min(self.pads, *limits)]
            trees.append(TokenTree.chain(sequence.tokens[-1], chain[: min(limits)]))
        return trees

    def behind(self, outcome: Outcome) -> list[int]:
        """The placeholders under the last accepted node whose answers were not emitted at once."""
        return list(takewhile(lambda node: outcome.tree.tokens[node] == self._token, super().behind(outcome)))
