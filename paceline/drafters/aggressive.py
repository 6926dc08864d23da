"""Input-guided aggressive decoding: correcting or simplifying a text mostly copies it, so the input is the draft.

The pointer starts at the first token of the source, what was given or a marked part of it, and the whole source from
there on is drafted. The target accepts the run that it would have written itself and adds its own token at the first
difference. Then plain decoding goes on (or `fallback` drafts) until the last n output tokens, n = 1, 2, 3, stand at
exactly one place of the source; copying resumes behind it (see `paceline.drafters.following`). An unchanged sentence
takes one pass.

The paper decodes sequence-to-sequence models, whose input is the encoder's; first tokens that the decoder's opening
says already (`<s>`, a language) are passed over. For a decoder alone the input is in the prompt. Which places are taken
when several remain at n = 3 is not stated there; none are, as after an absent one.

Paper: Ge, Xia, Sun, Chen, Wei, "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", 2022
(input-guided aggressive decoding, IAD).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from paceline.drafters.fallback import WithFallback
from paceline.drafters.following import Follow
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence


@dataclass(eq=False)
class FollowPrompt(Follow):
    """Follows what was given between two markers.

    Attributes:
        after, before: runs of token ids; empty: from its start, and to its end.
    """

    after: tuple[int, ...] = ()
    before: tuple[int, ...] = ()

    def source(self, sequence: Sequence) -> Seq[int]:
        given = sequence.given
        first = _find(given, self.after, 0) if self.after else None
        start = _said(sequence) if first is None else first + len(self.after)
        end = _find(given, self.before, start) if self.before else None
        return given[start:end]


def _said(sequence: Sequence) -> int:
    """How many of the source's first tokens the decoder's opening says already (`<s>`, a language)."""
    opening = sequence.tokens[len(sequence.given) : sequence.prompt_length]
    return max(n for n in range(len(opening) + 1) if sequence.given[:n] == opening[len(opening) - n :])


def _find(tokens: list[int], run: tuple[int, ...], start: int) -> int | None:
    """Index of the first occurrence of a run at or after `start`."""
    return next((i for i in range(start, len(tokens) - len(run) + 1) if tuple(tokens[i : i + len(run)]) == run), None)


@method(
    name="aggressive",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="Takes the prompt, or a marked part of it, for the output, and finds back after a difference.",
    paper="Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
    year=2022,
)
@dataclass(eq=False)
class Aggressive(WithFallback):
    """Input-guided aggressive decoding.

    Attributes:
        after: token ids, such as `"12 7"`; the source begins behind their first occurrence in what was given (the
            encoder's input, or the prompt). By default, or where they do not occur, at its start.
        before: token ids; the source ends before their first occurrence after that. By default, or where they do not
            occur, at its end.
        fallback: the drafter that speaks while the place is lost, as a spec or an instance; by default none.
        ngram: most output tokens that are looked for in the source after a difference.
        resume: "unique" or "nearest" (see `paceline.drafters.following.RESUME`).
        confidence: beyond what rides along, a draft ends where its chance to hold falls below this; 0: copy on.
    """

    after: str | int = ""
    before: str | int = ""
    fallback: Any = None
    ngram: int = 3
    resume: str = "unique"
    confidence: float = 0.3
    shape: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        marks = (self._ids("after"), self._ids("before"))
        own = FollowPrompt(self.ngram, self.resume, self.confidence, *marks)
        own.check("aggressive")
        self.back(own, self.fallback)

    def _ids(self, name: str) -> tuple[int, ...]:
        words = str(getattr(self, name)).split()
        if not all(word.isdecimal() for word in words):
            raise BadRequest(f"aggressive({name}={getattr(self, name)!r}): token ids with spaces between are needed")
        return tuple(int(word) for word in words)
