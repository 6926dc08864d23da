"""DEL: early exit whose layer and draft length follow the text.

Every pass of the target passes through all layers, so it also says what each layer alone would have drafted: at the
nodes that it accepted (the root included) the *shadow token* of layer l, the best under `W norm(h^l)`, is compared with
the token that was chosen there. With n such nodes and m_l matches,

    M_l <- w M_l + m_l,    N <- w N + n,    alpha_l = M_l / N

and the next draft exits at the layer l and has the length d that bring the most tokens per layer run,

    TPL(l, d) = (1 - alpha_l^(d + 1)) / (1 - alpha_l) / (d l + L)

with numerator d + 1 at alpha_l = 1. d = 0, no draft, is one of the choices. Layer L is not among the exits: greedily
it says what is chosen, so alpha_L = 1 and TPL(L, d) = 1 / L for all d, which is that of d = 0. Besides, a draft ends
with the first token whose probability is below a threshold: halfway between the mean probabilities of accepted and of
refused tokens.

The sums belong to the text; its mean probabilities are weighted down by w as well. To read out a layer costs a product
with the head's matrix, so only some layers, evenly spread, are followed. w and the form of the threshold are not fixed
by the paper. Suits models whose inner states can be read out, as `early_exit` does.

Paper: Entezari Zarch et al., "DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from paceline.budgets import check_budgets
from paceline.drafters.base import Outcome
from paceline.drafters.selfdraft import SelfDraft, check_knobs
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.views import Exit, require_views
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence


def tokens_per_layer(alpha: np.ndarray, layers: np.ndarray, total: int, most: int) -> np.ndarray:
    """Expected tokens per layer run, TPL.

    Args:
        alpha: `[n]` chances that a token drafted at a layer is accepted.
        layers: `[n]` how many layers draft there.
        total: L, layers of the model.
        most: longest draft.

    Returns:
        `[n, most + 1]` for drafts of 0 to `most` tokens.
    """
    lengths = np.arange(most + 1)
    expected = np.cumsum(alpha[:, None] ** lengths, 1)
    found: np.ndarray = expected / (lengths * layers[:, None] + total)
    return found


@dataclass
class Watch:
    """What is known of one text.

    Attributes:
        matches, seen: M `[n]` and N.
        layer, most: where the next draft exits, and its greatest length.
        sure: sums and numbers of the probabilities of refused and of accepted tokens, `[2, 2]`.
    """

    matches: np.ndarray
    layer: int
    most: int
    seen: float = 0.0
    sure: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))

    @property
    def least(self) -> float:
        """The threshold; 0 until both kinds of token were seen."""
        return float((self.sure[:, 0] / self.sure[:, 1]).mean()) if self.sure[:, 1].all() else 0.0


@method(
    name="del",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Early exit at the layer, and of the length, that brought the most tokens per layer in this text.",
    paper="DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding",
    year=2025,
    needs={"views", "hidden_states"},
)
@dataclass(eq=False)
class Del(SelfDraft):
    """Drafting with as many first layers as pay.

    Attributes:
        layer: how many layers draft at first; by default half of them.
        length: longest draft.
        memory: w, weight of the past at each step, 0 to 1.
        candidates: how many exits are followed, evenly spread over the layers.
        threshold: end drafts by the probabilities of accepted and refused tokens.
    """

    layer: int | None = None
    length: int | None = 12
    memory: float = 0.95
    candidates: int = 8
    threshold: bool = True
    _exits: list[Exit] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        check_knobs("del", self.length, 0.0)
        if not 0 <= self.memory <= 1:
            raise BadRequest(f"del(memory={self.memory}): a number from 0 to 1 is needed")
        if self.candidates < 1:
            raise BadRequest(f"del(candidates={self.candidates}): an integer of at least 1 is needed")

    def prepare(self, target: CausalModel) -> CausalModel:
        require_views(target, "drafter 'del'")
        check_budgets("del", self, target, "length")
        layers = target.num_layers
        first = max(1, layers // 2) if self.layer is None else self.layer
        if not 1 <= first < layers:
            raise BadRequest(f"del(layer={self.layer}): {target.name} has {layers} layers; 1 to {layers - 1} can draft")
        spread = np.linspace(1, layers - 1, min(self.candidates, layers - 1)).round().astype(int)
        self.taps = tuple(sorted({first, *spread.tolist()}))
        self._exits = [Exit(layer) for layer in self.taps]
        self._first = self.taps.index(first)
        return target

    @property
    def longest(self) -> int:
        """The longest draft that can come up."""
        return min(self.length or self._model.spare, self._model.context)

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = Watch(np.zeros(len(self.taps)), self._first, self.longest)

    def end(self, sequence: Sequence) -> None:
        sequence.drafts = None

    def view(self, sequence: Sequence) -> Exit:
        return self._exits[sequence.drafts.layer]

    def most(self, sequence: Sequence) -> int:
        return int(sequence.drafts.most)

    def least(self, sequence: Sequence) -> float:
        return float(sequence.drafts.least) if self.threshold else 0.0

    def observe(self, outcomes: Seq[Outcome]) -> None:
        """Count the shadow tokens that are right, and choose the next exit and length."""
        nodes = [outcome.path[: len(outcome.tokens)] for outcome in outcomes]
        states = [outcome.hidden[tap][path] for outcome, path in zip(outcomes, nodes, strict=True) for tap in self.taps]
        # One product with the head for all layers and texts, one transfer.
        shadows = self._model.read_out(torch.cat(states)).argmax(-1).cpu().split([len(part) for part in states])
        for i, (outcome, path) in enumerate(zip(outcomes, nodes, strict=True)):
            own = torch.stack(shadows[i * len(self.taps) : (i + 1) * len(self.taps)]).numpy()
            self._count(outcome.sequence.drafts, (own == outcome.tokens[: len(path)]).sum(1), len(path))

    def commit(self, outcomes: Seq[Outcome]) -> None:
        """Note how sure the draft was of accepted tokens, and of the first that was refused."""
        for outcome in outcomes:
            odds, watch = outcome.tree.odds, outcome.sequence.drafts
            if odds is None or not outcome.tree.drafted:
                continue
            sure, accepted = odds[1:] / np.maximum(odds[:-1], 1e-12), len(outcome.path) - 1
            watch.sure *= self.memory
            watch.sure[1] += sure[:accepted].sum(), accepted
            watch.sure[0] += sure[accepted : accepted + 1].sum(), len(sure[accepted : accepted + 1])

    def _count(self, watch: Watch, matches: np.ndarray, nodes: int) -> None:
        watch.matches = self.memory * watch.matches + matches
        watch.seen = self.memory * watch.seen + nodes
        alpha = watch.matches / watch.seen
        gain = tokens_per_layer(alpha, np.array(self.taps), self._model.num_layers, self.longest)
        layer, length = np.unravel_index(gain.argmax(), gain.shape)
        watch.layer, watch.most = int(layer), int(length)
