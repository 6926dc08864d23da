"""SkipDecode: later tokens get fewer layers.

The token at generated position t has a budget that falls linearly from `most` layers at t = 0 to `least` at t = T,

    b(t) = round(most + (least - most) t / T),  half up,

and stays there. It goes through the first `warm` layers and the top b(t) - `warm` ones; the prompt's budget is `most`.
All sequences share the schedule, so they batch. Since budgets never rise, the layers of a token are among those of
every earlier one: keys that were not written are never read, and none are computed later.

The model is meant to be fine-tuned under the same schedule. The published pairs (most, least) per speed-up are not
known to the authors of this file; they are knobs here.

Paper: Del Corro et al., "SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM
Inference", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.errors import BadRequest
from paceline.models.views import Chosen, View, ViewRule
from paceline.registry import Guarantee, method


@method(
    name="skipdecode",
    kind="view",
    guarantee=Guarantee.LOSSY,
    knob="least",
    summary="The further a text gets, the fewer layers its tokens go through.",
    paper="SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM Inference",
    year=2023,
    needs={"views"},
)
@dataclass(frozen=True)
class SkipDecode(ViewRule):
    """A falling budget of layers.

    Attributes:
        least: layers from position `span` on; none: half of them. With `most`, the whole model.
        most: layers at the start and in the prompt; none: all.
        span: T, generated tokens over which the budget falls.
        warm: first layers that always run.
    """

    least: int | None = None
    most: int | None = None
    span: int = 256
    warm: int = 1

    def __post_init__(self) -> None:
        if self.span < 1 or self.warm < 0:
            wrong = f"span={self.span}" if self.span < 1 else f"warm={self.warm}"
            raise BadRequest(f"skipdecode({wrong}): span of at least 1 and warm of at least 0 are needed")

    def check(self, layers: int) -> None:
        most, least = self._ends(layers)
        if not max(1, self.warm) <= least <= most <= layers:
            raise BadRequest(
                f"skipdecode(least={least}, most={most}, warm={self.warm}): the budget may not rise; "
                f"1 and warm <= least <= most <= {layers} layers is needed"
            )

    def budget(self, positions: np.ndarray, layers: int) -> np.ndarray:
        """Layers of the tokens at generated positions t (negative in the prompt), same shape."""
        most, least = self._ends(layers)
        budget: np.ndarray = np.floor(most + (least - most) * np.clip(positions, 0, self.span) / self.span + 0.5)
        return budget.astype(np.int64)

    def view(self, generated: np.ndarray, layers: int) -> View:
        # A token that stands behind g generated ones is read to predict the one at g + 1.
        skipped = layers - self.budget(generated + 1, layers)
        numbers = np.arange(layers)[:, None]
        return Chosen((numbers < self.warm) | (numbers >= self.warm + skipped))

    def _ends(self, layers: int) -> tuple[int, int]:
        most = layers if self.most is None else self.most
        return most, max(1, self.warm, layers // 2) if self.least is None else self.least
