"""Early exit: the first layers alone, read out by the model's own last norm and head.

With h^l the states behind layer l, the text follows `softmax(W norm(h^l))`, prompt included, as if the model had no
further layers. What they would have cached is never written and never read.

The model is meant to be trained so that its inner states can be read out (layer dropout and a loss at every exit);
ordinary models hardly speak before their last layers.

Paper: Elhoushi et al., "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.errors import BadRequest
from paceline.models.views import Exit, View, ViewRule
from paceline.registry import Guarantee, method


@method(
    name="exit",
    kind="view",
    guarantee=Guarantee.LOSSY,
    knob="layer",
    summary="All tokens go through the first layers alone.",
    paper="LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
    year=2024,
    needs={"views"},
)
@dataclass(frozen=True)
class FirstLayers(ViewRule):
    """The first layers.

    Attributes:
        layer: how many layers run, 1 to L; none: half of them. L: the whole model.
    """

    layer: int | None = None

    def check(self, layers: int) -> None:
        if self.layer is not None and not 1 <= self.layer <= layers:
            raise BadRequest(f"exit(layer={self.layer}): the model has {layers} layers; 1 to {layers} may run")

    def view(self, generated: np.ndarray, layers: int) -> View:
        return Exit(max(1, layers // 2) if self.layer is None else self.layer)
