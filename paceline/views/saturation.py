"""MuE: a token leaves the model once a layer hardly changes its state.

Behind every layer l = 1, 2, .. the state that entered it is compared with what it made of it. From the first l on with

    cos(h^l, h^{l-1}) >= threshold

no further sub-block adds to the token's state: h^l goes to the model's last norm and head. Later tokens may go deeper
and attend to it there, so the remaining layers are filled by propagation: each one's norm and key and value projections
are applied to h^l. The prompt goes through the whole model; generated tokens decide one by one, by their own states
alone, so every drafter, tree and batch leads to the same text.

A pass is shortened where all of its tokens have left: what remains of a layer is its norm and one product, which is
that of its queries as well where the three share a packed matrix. On accelerators, where to find out would stall the
device, the layers are computed and discarded.

This is the rule of the paper's decoder. Its encoders of images and text, which leave one by one by the same rule, are
not part of it. The model is meant to be trained with the task's loss at every layer. The published thresholds are not
confirmed.

Paper: Tang et al., "You Need Multiple Exiting: Dynamic Early Exiting for Accelerating Unified Vision Language Model",
2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.errors import BadRequest
from paceline.models.views import Runs, View, ViewRule
from paceline.registry import Guarantee, method


@method(
    name="saturation",
    kind="view",
    guarantee=Guarantee.LOSSY,
    knob="threshold",
    summary="Generated tokens leave the model once a layer hardly changes their state.",
    paper="You Need Multiple Exiting: Dynamic Early Exiting for Accelerating Unified Vision Language Model",
    year=2023,
    needs={"views"},
)
@dataclass(frozen=True)
class Saturation(ViewRule):
    """Early exit by saturation.

    Attributes:
        threshold: cosine of the states around a layer from which on a token leaves behind it; above 1: the whole
            model; -1 or less: the first layer alone.
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise BadRequest(f"saturation(threshold={self.threshold}): a number is needed")

    def view(self, generated: np.ndarray, layers: int) -> View:
        return Saturating(self.threshold, torch.from_numpy(generated >= 0))


class Saturating(View):
    """One pass.

    Args:
        threshold: see `Saturation`.
        may: `[B * T]` bool, tokens that may leave before the last layer.

    Attributes:
        running: `[B * T]` bool, tokens that have not left.
        layers: `[B * T]` int64, layers that each token has gone through.
    """

    fills = True

    def __init__(self, threshold: float, may: Tensor) -> None:
        self.threshold, self.stays = threshold, ~may
        self.running, self.layers = torch.ones_like(may), torch.zeros_like(may, dtype=torch.int64)
        self._runs: Runs = True

    def attends(self, layer: int) -> Runs:
        return self._runs

    def feeds(self, layer: int) -> Runs:
        return self._runs

    def passed(self, layer: int, before: Tensor, after: Tensor) -> None:
        if self._runs is False:
            return
        if self.running.device != after.device:
            self.stays, self.running, self.layers = (
                x.to(after.device) for x in (self.stays, self.running, self.layers)
            )
        self.layers += self.running
        # A cosine may be rounded to a little more than 1.
        cosine = F.cosine_similarity(before.float(), after.float(), dim=-1).clamp(-1, 1)
        self.running = self.running & (self.stays | (cosine < self.threshold))
        self._runs = self.running
        if self.running.device.type == "cpu":
            count = int(self.running.sum())
            self._runs = self.running if 0 < count < len(self.running) else count > 0
