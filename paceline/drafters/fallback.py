"""Base of drafters that speak only where they have something to say, and let another one speak elsewhere."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from paceline.drafters.base import Drafter
from paceline.drafters.ensemble import Budget, Ensemble, built
from paceline.sequence import Sequence
from paceline.tree import TokenTree


class WithFallback(Ensemble):
    """The first member drafts; where it drafts nothing the second one does.

    The first member must not draw its tokens: passing a drawn draft over would favour some texts.
    """

    def back(self, own: Drafter, fallback: Any) -> None:
        """Set the members.

        Args:
            own: drafts first.
            fallback: a spec, an instance, or `None` for no draft.
        """
        self.members = (own, built("none" if fallback is None else fallback))
        self.shape = "tree" if any(member.shape == "tree" for member in self.members) else "chain"

    def propose(self, sequences: Seq[Sequence], budget: Seq[Budget]) -> list[TokenTree]:
        limits = dict(zip(sequences, budget, strict=True))
        chosen = dict(zip(sequences, self.ask(0, sequences, budget), strict=True))
        silent = [s for s, tree in chosen.items() if not tree.drafted]
        chosen |= zip(silent, self.ask(1, silent, [limits[s] for s in silent]), strict=True)
        return [chosen[s] for s in sequences]
