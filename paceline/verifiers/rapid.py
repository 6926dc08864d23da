"""RAPID's knowledge transfer: the target moves towards a draft that has read the right part of a long prompt.

A draft model that reads the retrieved parts of a long context (drafter `rapid`) may know better than a target that
reads all of it. With p the policy's law after a prefix, q the draft's there, and m(x) = 1 where `q(x) >= mask max q`,
else 0,

    p^ = softmax(log p + eta (q - p) m)

takes the place of p: one step of gradient on how far p is from the teacher q. In the mode

- `policy` p^ is the law of every token: accept `x ~ q` with probability `min(1, p^(x) / q(x))`, else draw from
  `norm(max(p^ - q, 0))`. Behind the last drafted token q is not known, and so nothing is added to a draft that holds:
  it emits at most as many tokens as were drafted. Exact for p^, if q depends on the text alone (drafters `rapid` and
  `draft`); where nothing can be drafted, at the end of a context, the law is p.
- `paper` a refused token is replaced by a draw from `norm(max(p - q, p - p^, 0))`, and a token from p follows a draft
  that holds, as in the published code. The law of what is emitted is neither p nor p^.

What the policy rules out stays ruled out. eta = 0 is lossless. A greedy draft tells no law, so text must be sampled.

Paper: Chen et al., "Long-Context Inference with Retrieval-Augmented Speculative Decoding", 2025 (eta 0.1 to 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paceline.chance import Chance
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict
from paceline.verifiers.siblings import ROUNDING, Sibling, SiblingVerifier, sequential_rejection

MODES = ("policy", "paper")


@method(
    name="rapid",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Speculative sampling from a target that moves towards what the draft knows, by eta.",
    paper="Long-Context Inference with Retrieval-Augmented Speculative Decoding",
    year=2025,
    needs={"chain", "draft_law"},
    knob="eta",
)
@dataclass(frozen=True)
class KnowledgeTransfer(SiblingVerifier):
    """Rejection sampling of a chain against a target that learns from the draft.

    Attributes:
        eta: how far the target moves, at least 0; 0 is lossless.
        mask: only tokens at least this share as likely as the draft's best one move, 0 to 1; 0: all.
        mode: "policy" or "paper" (see the module).
    """

    eta: float = 0.1
    mask: float = 0.1
    mode: str = "policy"

    judges = ("distinct", "replacement")
    shapes = frozenset({"chain"})
    choices = frozenset({"sampled"})

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise BadRequest(f"rapid(eta={self.eta}): a finite number of at least 0 is needed")
        if not 0 <= self.mask <= 1:
            raise BadRequest(f"rapid(mask={self.mask}): a number from 0 to 1 is needed")
        if self.mode not in MODES:
            raise BadRequest(f"rapid(mode={self.mode!r}): 'policy' or 'paper' is needed")

    @property
    def extends(self) -> bool:
        return self.mode == "paper"

    def transferred(self, target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
        """p^ of two laws, all `[V]` float64."""
        known = draft >= self.mask * draft.max()
        return (target.log() + self.eta * (draft - target) * known).softmax(-1)

    def choose(
        self, target: torch.Tensor, siblings: Sequence[Sibling], flip: Callable[[float, int], bool]
    ) -> tuple[int | None, torch.Tensor]:
        draft = siblings[0].law if siblings else None
        if draft is None:
            return sequential_rejection(target, siblings, flip)
        moved = self.transferred(target, draft)
        index, rest = sequential_rejection(moved, siblings, flip)
        if index is None and self.mode == "paper":
            left = (target - torch.minimum(draft, moved)).clamp_min(0)
            rest = left / left.sum() if float(left.sum()) >= ROUNDING else target
        return index, rest

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        verdict = super().verify(tree, logp, chance, position)
        if self.extends or not tree.drafted or len(verdict.path) < len(tree):
            return verdict
        return Verdict(verdict.path[:-1], int(tree.tokens[-1]))
