"""Self-speculative decoding: the target drafts by any view of itself, and then checks what it drafted.

A view that serves as a lossy model (`paceline methods --kind view`) drafts without loss: drafted tokens go through the
sub-blocks that it runs, behind keys and values that the whole model wrote, and the whole model scores them. A draft
ends after `length` tokens or with the first one whose probability is below `confidence`. The tokens of a draft count as
generated ones, so a schedule goes on from where the text is.

What the draft wrote is dropped before the target is scored. Within a draft a token attends where every earlier one did;
a view that breaks this is stopped (`paceline.models.views.Watched`).

The published method leaves out a set of attention and MLP sub-blocks, `skip(...)` here, found by Bayesian optimisation
of its speed, and adapts the threshold to the acceptance; here the set is given (`swift` finds one) and `confidence` is
fixed.

Paper: Zhang et al., "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paceline import registry
from paceline.budgets import check_budgets
from paceline.drafters.selfdraft import SelfDraft, check_knobs
from paceline.models.causal import CausalModel
from paceline.models.views import View, ViewRule, Watched, require_views
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence


@method(
    name="self_speculative",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="The target drafts by any of its views: fewer layers, or fewer of their sub-blocks.",
    paper="Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding",
    year=2023,
    needs={"views"},
)
@dataclass(eq=False)
class SelfSpeculative(SelfDraft):
    """Drafting by a view.

    Attributes:
        of: the view that drafts: a spec such as `"skip(attention='2 3', mlp='3')"` or an instance.
        length: most tokens of a draft.
        confidence: a draft ends with the first token of a lower probability under the draft.
    """

    of: Any = "exit"
    length: int | None = 6
    confidence: float = 0.6
    _rule: Watched = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_knobs("self_speculative", self.length, self.confidence)
        self._rule = Watched(registry.build("view", self.of))

    def prepare(self, target: CausalModel) -> CausalModel:
        require_views(target, "drafter 'self_speculative'")
        check_budgets("self_speculative", self, target, "length")
        self._rule.check(target.num_layers)
        return target

    def view(self, sequence: Sequence) -> View | ViewRule | None:
        return self._rule
