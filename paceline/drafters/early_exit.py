"""Early exit: the first layers of the target, read out by its own norm and head, draft for all of them.

With h^l the states behind layer l, the draft's law after a prefix is `softmax(W norm(h^l))`, where the norm and W are
the model's last ones. A draft runs layers 1 to l for each token and ends after `length` tokens or with the first token
whose probability is below `confidence`. The first layers compute in the draft exactly what they compute in the target,
so they read the target's keys and write what the target will write.

No adapter lies between h^l and the head, so it suits models whose inner states can be read out, such as those trained
with layer dropout and an early-exit loss, as the paper does. In a model that was not, a late layer is needed.

The target scores the draft with all of its layers. To resume from the stored h^l instead would save no weights: the
last drafted token has not been through the first layers yet, and they are read for one token as for all.

Paper: Elhoushi et al., "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding", 2024. Ending a draft
by its confidence is from Liu et al., "Kangaroo: Lossless Self-Speculative Decoding via Double Early Exiting", 2024,
which trains an adapter for h^l.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.budgets import check_budgets
from paceline.drafters.selfdraft import SelfDraft, check_knobs
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.views import Exit, View, require_views
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence


@method(
    name="early_exit",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="The target's first layers draft, read out by its own head.",
    paper="LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
    year=2024,
    needs={"views"},
)
@dataclass(eq=False)
class EarlyExit(SelfDraft):
    """Drafting with the first layers.

    Attributes:
        layer: how many layers draft, 1 to L - 1; by default half of them.
        length: most tokens of a draft.
        confidence: a draft ends with the first token of a lower probability under the draft.
    """

    layer: int | None = None
    length: int | None = 6
    confidence: float = 0.6
    _view: Exit | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_knobs("early_exit", self.length, self.confidence)

    def prepare(self, target: CausalModel) -> CausalModel:
        require_views(target, "drafter 'early_exit'")
        check_budgets("early_exit", self, target, "length")
        layers = target.num_layers
        chosen = layers // 2 if self.layer is None else self.layer
        if not 1 <= chosen < layers:
            raise BadRequest(
                f"early_exit(layer={self.layer}): {target.name} has {layers} layers; 1 to {layers - 1} can draft"
            )
        self._view = Exit(chosen)
        return target

    def view(self, sequence: Sequence) -> View | None:
        return self._view
