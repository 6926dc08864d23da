"""Unified Layer Skipping: the same evenly spread layers for every generated token.

Of L layers, n = floor(L / speedup) are kept: 0 and L - 1, and multiples of floor(L / (n - 1)), the lowest first, until
there are n. The prompt goes through all layers, generated tokens through the kept ones alone, so every token costs the
same, whatever the text. A skipped layer's keys of generated tokens are not written and never read. The reference code
instead copies the state into the skipped layers' caches, where nothing reads it either.

The model is meant to be fine-tuned with the chosen layers.

Paper: Liu et al., "Accelerating Inference in Large Language Models with a Unified Layer Skipping Strategy", 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paceline.errors import BadRequest
from paceline.models.views import Chosen, View, ViewRule
from paceline.registry import Guarantee, method


@method(
    name="unified",
    kind="view",
    guarantee=Guarantee.LOSSY,
    knob="speedup",
    summary="Generated tokens go through the same evenly spread layers.",
    paper="Accelerating Inference in Large Language Models with a Unified Layer Skipping Strategy",
    year=2024,
    needs={"views"},
)
@dataclass(frozen=True)
class Unified(ViewRule):
    """Evenly spread layers.

    Attributes:
        speedup: layers of the model per layer that is kept; 1: the whole model.
    """

    speedup: float = 2.0

    def __post_init__(self) -> None:
        if not self.speedup >= 1:
            raise BadRequest(f"unified(speedup={self.speedup}): a number of at least 1 is needed")

    def check(self, layers: int) -> None:
        if layers // self.speedup < 2:
            raise BadRequest(
                f"unified(speedup={self.speedup}): of {layers} layers at least 2 must be kept; at most {layers / 2:g} "
                "is allowed"
            )

    def kept(self, layers: int) -> list[int]:
        """The layers that generated tokens go through, ascending."""
        count = math.floor(layers / self.speedup)
        interval = layers // (count - 1)
        between = list(range(interval, layers - 1, interval))[: count - 2]
        return [0, *between, layers - 1]

    def view(self, generated: np.ndarray, layers: int) -> View:
        kept = np.isin(np.arange(layers), self.kept(layers))
        return Chosen(kept[:, None] | (generated < 0))
