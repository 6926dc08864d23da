"""The engine's record of one text being generated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paceline.chance import Chance
from paceline.policies.base import Pipeline
from paceline.requests import Stats, TokenLogprob
from paceline.text import Detokenizer

if TYPE_CHECKING:
    from paceline.caches import Row, TrieCache
    from paceline.drafters.base import Drafter
    from paceline.requests import Request
    from paceline.verifiers.base import Verifier


@dataclass(eq=False)
class Sequence:
    """One sample of one request, from admission to its end.

    Attributes:
        request: what was asked.
        index: which of the request's `n` samples this is.
        tokens: prompt and generated token ids.
        prompt_length: how many of them are the prompt.
        source: how many of these an encoder reads; what policies and readers see begins behind them.
        pipeline: the policy, and `state` its state after the last token of `tokens`.
        chance: the sample's randomness.
        drafter, verifier: the parts that serve it.
        drafts: the drafter's state for this sequence (owned by the drafter, stored here).
        end_tokens: ids that end its text.
        row: its cache row, while it runs, and `cache` the target's cache that holds it.
        stop_reason: the stop string or token id that ended it.
    """

    request: Request
    index: int
    tokens: list[int]
    prompt_length: int
    pipeline: Pipeline
    chance: Chance
    drafter: Drafter
    verifier: Verifier
    detokenizer: Detokenizer
    end_tokens: frozenset[int] = frozenset()
    source: int = 0
    state: tuple[Any, ...] = ()
    drafts: Any = None
    row: Row | None = None
    cache: TrieCache | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: Exception | None = None

    @property
    def given(self) -> list[int]:
        """What the user gave: the source where an encoder reads one, else the prompt."""
        return self.tokens[: self.source or self.prompt_length]

    @property
    def generated(self) -> int:
        """Number of generated tokens, which is also the output position of the next one."""
        return len(self.tokens) - self.prompt_length

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are committed in the cache."""
        return self.row.trunk if self.row is not None else 0

    @property
    def uncached(self) -> int:
        """Tokens that the next pass must write: the root, and what is left of the prompt at first."""
        return len(self.tokens) - self.cached

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self.request.sampling.max_new_tokens - self.generated
