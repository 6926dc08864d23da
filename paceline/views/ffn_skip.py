"""FFN-SkipLLM: skip the feed-forward sub-blocks that would hardly change a token's state.

Attention always runs, so all keys and values are written. The first `warm` generated tokens (and the prompt) use the
whole model. For each later token, the first and the last `cold` layers run; in between, once

    cos(x, x + FFN(x)) >= similarity

holds behind a layer, the token skips the feed-forward sub-blocks of the following layers, at most a share `cap` of all
layers, then runs the rest. With `recheck` = k, a sub-block runs after k skipped ones and the test is made again.

What is skipped differs from token to token, so a pass is shortened only where none of its tokens runs a sub-block; on
accelerators, where to find out would stall the device, it is computed and discarded. The paper's own values of the
knobs, and whether it tests again, are not confirmed.

Paper: Jaiswal et al., "FFN-SkipLLM: A Hidden Gem for Autoregressive Decoding with Adaptive Feed Forward Skipping",
2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.errors import BadRequest
from paceline.models.views import Runs, View, ViewRule
from paceline.registry import Guarantee, method


@method(
    name="ffn_skip",
    kind="view",
    guarantee=Guarantee.LOSSY,
    knob="similarity",
    summary="Tokens skip feed-forward sub-blocks in the middle once these hardly change their state.",
    paper="FFN-SkipLLM: A Hidden Gem for Autoregressive Decoding with Adaptive Feed Forward Skipping",
    year=2024,
    needs={"views"},
)
@dataclass(frozen=True)
class FFNSkip(ViewRule):
    """Adaptive skipping of feed-forward sub-blocks.

    Attributes:
        similarity: cosine from which on sub-blocks are skipped; above 1: the whole model.
        cap: largest share of the model's layers that a token may skip, 0 to 1.
        cold: so many first and last layers always run.
        warm: generated tokens before the first that skips.
        recheck: skipped sub-blocks after which one runs and the test is made again; none: no further test.
    """

    similarity: float = 0.98
    cap: float = 0.3
    cold: int = 2
    warm: int = 4
    recheck: int | None = None

    def __post_init__(self) -> None:
        if not self.similarity >= -1:
            raise BadRequest(f"ffn_skip(similarity={self.similarity}): a number of at least -1 is needed")
        if not 0 <= self.cap <= 1:
            raise BadRequest(f"ffn_skip(cap={self.cap}): a number from 0 to 1 is needed")
        for name, least in (("cold", 0), ("warm", 0), ("recheck", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadRequest(f"ffn_skip({name}={value}): an integer of at least {least} is needed")

    def check(self, layers: int) -> None:
        if 2 * self.cold >= layers:
            raise BadRequest(
                f"ffn_skip(cold={self.cold}): the first and last {self.cold} layers are all {layers}; "
                f"at most {(layers - 1) // 2} is allowed"
            )

    def view(self, generated: np.ndarray, layers: int) -> View:
        return Fading(self, torch.from_numpy(generated >= self.warm), layers)


class Fading(View):
    """One pass: which tokens skip at the moment, and how many sub-blocks each may still skip."""

    def __init__(self, rule: FFNSkip, may: Tensor, layers: int) -> None:
        self.rule, self.middle = rule, range(rule.cold, layers - rule.cold)
        self.skipping = torch.zeros_like(may)
        self.left = may * int(rule.cap * layers)
        self.run = torch.zeros_like(self.left)

    def feeds(self, layer: int) -> Runs:
        if layer not in self.middle:
            return True
        self.skipping &= self.left > 0
        if self.rule.recheck is not None:
            self.skipping &= self.run < self.rule.recheck
        self.left -= self.skipping.int()
        self.run = torch.where(self.skipping, self.run + 1, 0)
        if self.skipping.device.type == "cpu" and bool((self.skipping == self.skipping[0]).all()):
            return not bool(self.skipping[0])
        return ~self.skipping

    def fed(self, layer: int, before: Tensor, after: Tensor) -> None:
        if layer in self.middle:
            if self.skipping.device != after.device:
                self.skipping, self.left, self.run = (x.to(after.device) for x in (self.skipping, self.left, self.run))
            close = F.cosine_similarity(before.float(), after.float(), dim=-1) >= self.rule.similarity
            self.skipping |= close
