"""Lexical units: answers at placeholders are emitted unverified while the model is sure of them.

The path is accepted as by `coupled`. Then, of the placeholders below its end (drafter `lexical`), one after the other
says a token; it is emitted as long as the best token has a probability of at least `beta` there. Policies judge every
token with the text's own history. A span that repeats what stands right before it ends there too: a model that is not
sure what belongs into a placeholder tends to say the last token again.

What is emitted unverified does not follow the policy's law; how far it is off depends on the model's training, and
`beta` bounds where it is taken. Above 1 nothing is, and the text is that of plain decoding. The paper's
value of beta and its form of the repetition rule are not confirmed.

Paper: Sun et al., "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch

from paceline.chance import Chance
from paceline.drafters.lexical import placeholder_of
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict
from paceline.verifiers.coupled import Coupled


@method(
    name="lexical",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Emit what the model says at placeholders, unverified, while it is sure.",
    paper="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    year=2024,
    needs={"placeholder"},
    knob="beta",
)
@dataclass(frozen=True)
class LexicalAcceptance(Coupled):
    """Coupled verification that goes on over placeholders.

    Attributes:
        beta: least probability of the best token at a placeholder; above 1 the text is that of plain decoding.
        placeholder: the token that stands for one not yet known; by default the padding token.
    """

    beta: float = 0.9
    placeholder: int | None = None
    _token: int = field(init=False, repr=False, compare=False, default=-1)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise BadRequest(f"lexical(beta={self.beta}): a number above 0 is needed")

    def attach(self, target: CausalModel) -> None:
        object.__setattr__(self, "_token", placeholder_of(target, self.placeholder))

    def walk(self, tree: TokenTree, chosen: Sequence[int], chance: Chance, position: int) -> Verdict:
        verdict = super().walk(tree, chosen, chance, position)
        below = tree.chain_below(verdict.path[-1])
        return replace(verdict, behind=list(takewhile(lambda node: tree.tokens[node] == self._token, below)))

    def trusts(self, law: torch.Tensor, text: Sequence[int], unverified: int) -> bool:
        if not float(law.max()) >= math.log(self.beta):
            return False
        return not any(text[-n:] == text[-2 * n : -n] for n in range(1, unverified + 1))
