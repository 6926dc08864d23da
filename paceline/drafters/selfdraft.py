"""Self-drafting: the target drafts for itself, by passes that cost less than its own.

Such a draft needs no second model and no second reading of the prompt: it reads the keys and values that the target
committed in its own cache. What a draft writes lies behind them and is forgotten before the target is scored, which
writes these slots anew; nothing approximate is ever read by the target.

At a sequence's first step the rest of the prompt is not cached yet, and nothing is drafted.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Seq

import torch

from paceline.drafters.base import Drafter
from paceline.drafters.chain import CHAIN_LAWS, Run
from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.views import View, ViewRule
from paceline.plan import agreed
from paceline.sequence import Sequence
from paceline.tree import TokenTree


class SelfDraft(Drafter):
    """A chain, drafted token by token. Subclasses are dataclasses with the knobs `length` and `confidence`.

    Attributes:
        length: most tokens of a draft; None: as many as ride along with the target's pass (`model.spare`).
        confidence: a draft ends with the first token of a lower probability under the draft.
    """

    length: int | None
    confidence: float
    drafts = CHAIN_LAWS
    _target: CausalModel | None = None

    def attach(self, target: CausalModel) -> None:
        if self._target is not target:
            self._model = self.prepare(target)
            self._target = target

    def prepare(self, target: CausalModel) -> CausalModel:
        """The model that drafts, for a target that is new to the drafter. Raises `BadRequest` or `Unsupported`."""
        return target

    def view(self, sequence: Sequence) -> View | ViewRule | None:
        """What of the model drafts for a sequence in the step at hand; equal views share a pass."""
        return None

    def most(self, sequence: Sequence) -> int:
        """Most tokens of the sequence's next draft."""
        return self.length or self._model.spare

    def least(self, sequence: Sequence) -> float:
        """Probability below which a token is a draft's last."""
        return self.confidence

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        committed = [sequence.cached for sequence in sequences]
        runs = [self._run(sequence, *limits) for sequence, limits in zip(sequences, budget, strict=True)]
        try:
            while active := [run for run in runs if len(run.tokens) < run.limit]:
                for group in self._groups(active):
                    self._go_on(group)
        finally:
            for sequence, trunk in zip(sequences, committed, strict=True):
                assert sequence.cache is not None
                assert sequence.row is not None
                sequence.cache.crop(sequence.row, trunk)
        return [run.tree() for run in runs]

    def _run(self, sequence: Sequence, nodes: int, depth: int) -> Run:
        assert sequence.row is not None
        limit = min(self.most(sequence), nodes, depth) if sequence.uncached == 1 else 0
        law = agreed(self, sequence.verifier)
        return Run(sequence, sequence.row, limit, sequence.state, sequence.tokens[-1:], law=law)

    def _groups(self, runs: list[Run]) -> list[list[Run]]:
        """Runs that can share a pass."""
        groups: dict[Hashable, list[Run]] = {}
        for run in runs:
            groups.setdefault((id(run.sequence.cache), self.view(run.sequence)), []).append(run)
        return list(groups.values())

    def _go_on(self, runs: list[Run]) -> None:
        """One token more for each of them."""
        cache = runs[0].sequence.cache
        assert cache is not None
        trees = [TokenTree.empty(run.pending[-1]) for run in runs]
        view = self.view(runs[0].sequence)
        logits = self._model.score(cache, [run.row for run in runs], trees, view=view).logits
        for run in runs:
            cache.keep(run.row, [0])
        asked = [run.ask(logits[i : i + 1]) for i, run in enumerate(runs)]
        # Everything the host needs leaves the device in one transfer.
        host = torch.cat(asked).cpu().split([len(answer) for answer in asked])
        for run, answer in zip(runs, host, strict=True):
            if len(answer):
                before = run.odds[-1] if run.odds else 1.0
                run.take(answer, self.least(run.sequence) * before)


def check_knobs(name: str, length: int | None, confidence: float) -> None:
    """Raises `BadRequest` for a `length` below 1 or a `confidence` outside 0 to 1."""
    if length is not None and length < 1:
        raise BadRequest(f"{name}(length={length}): an integer of at least 1 is needed")
    if not 0 <= confidence <= 1:
        raise BadRequest(f"{name}(confidence={confidence}): a number from 0 to 1 is needed")
