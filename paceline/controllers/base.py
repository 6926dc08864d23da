"""Controllers: how much a step may do, and which texts may begin.

The decoder asks its controller before it admits a text, before it reads a prompt and before every step. What a
controller says changes how fast texts come, never what they say: a smaller draft, a later start, no draft at all.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.caches import TrieCache
    from paceline.drafters.base import Drafter
    from paceline.sequence import Sequence


class Controller:
    """Base of all controllers, which limits nothing. Subclasses are dataclasses: their fields are the knobs."""

    def attach(self, model: Any, cache: TrieCache) -> None:
        """Called once with the target and its cache. Raises `BadRequest` or `Unsupported` if they do not suit."""

    def join(self, drafter: Drafter) -> None:
        """Called with every drafter, attached to the target, before it drafts. Raises `BadRequest`, `Unsupported`."""

    def check(self, tokens: int, drawn: bool) -> None:
        """Raises `BadRequest` if a text of so many tokens, prompt and output, drawn or not, could never be finished."""

    def admits(self, running: Seq[Sequence], sequence: Sequence) -> bool:
        """Whether a text may begin beside those that run; none waits for ever, since one alone may always begin."""
        return True

    def prefill_chunk(self, sequences: Seq[Sequence], most: int) -> int:
        """Tokens of the last text's prompt that a pass reads, 1 to `most`; its drafter is about to begin, too."""
        return most

    def nodes(self, sequences: Seq[Sequence], most: int) -> int:
        """Most drafted nodes a text in the next step, 0 to `most`."""
        return most

    def retired(self, sequences: Seq[Sequence]) -> list[Sequence]:
        """Texts whose drafters have to give up what they keep of them; they go on without drafts."""
        return []

    def lines(self) -> list[str]:
        """What it does, for people."""
        return []


class Unlimited(Controller):
    """No limit."""
