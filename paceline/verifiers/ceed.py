"""CEED-VLA's early exit: after some passes over a block of tokens its iterate is emitted, verified or not.

The path is accepted as by `coupled`. From the `cap`-th pass over a block on (drafter `ceed`), what the pass says at the
nodes below the path's end follows unverified: the rest of the iterate, each token the choice behind the guesses before
it. Policies judge every token with the text's own history, so what they rule out is never emitted.

Each pass makes at least one more token right. So the first `cap` tokens of a block are those of plain decoding behind
the same text, and with `cap` = n, the tokens of a block, all of them are. Those behind do not follow the policy's law;
how far they are off depends on the model's training. The paper's limit is not confirmed.

Paper: Song et al., "CEED-VLA: Consistency Vision-Language-Action Model with Early-Exit Decoding", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from paceline.chance import Chance
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict
from paceline.verifiers.coupled import Coupled


@method(
    name="ceed",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Emit a block of tokens as it stands after some passes, verified or not.",
    paper="CEED-VLA: Consistency Vision-Language-Action Model with Early-Exit Decoding",
    year=2025,
    knob="cap",
)
@dataclass(frozen=True)
class CEEDAcceptance(Coupled):
    """Coupled verification that ends a block early.

    Attributes:
        cap: most passes over a block; none, or as many as it has tokens: the text is that of plain decoding.
    """

    cap: int | None = None

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap < 1:
            raise BadRequest(f"ceed(cap={self.cap}): an integer of at least 1 is needed")

    def walk(self, tree: TokenTree, chosen: Sequence[int], chance: Chance, position: int) -> Verdict:
        verdict = super().walk(tree, chosen, chance, position)
        if self.cap is None or tree.passes < self.cap:
            return verdict
        return replace(verdict, behind=tree.chain_below(verdict.path[-1]))

    def trusts(self, law: torch.Tensor, text: Sequence[int], unverified: int) -> bool:
        # There is no law where the policies leave no token.
        return not bool(law.isnan().any())
