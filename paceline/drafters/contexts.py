"""What was found out about texts, kept by context: by what kind of text it was found out about.

A text's fingerprint is how often each token occurs in it, as `log(1 + count)`. A context is the sum of its texts'
fingerprints of length one. A text belongs to the context with the largest cosine, if that is at least `likeness`;
otherwise it is the first of a new context. Of more than `most` contexts the one unused for longest is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(eq=False)
class Context(Generic[T]):
    """Texts that are alike.

    Attributes:
        centre: `[V]` float32, the sum of their fingerprints.
        found: what is known of them.
    """

    centre: np.ndarray
    found: T


class Contexts(Generic[T]):
    """The contexts seen last.

    Args:
        vocabulary: V.
        most: how many are kept, at least 1.
        likeness: least cosine of a text and its context, 0 to 1.
        begin: what is known of a new context, given what is known of the one most like it (`None`: there is none).
    """

    def __init__(self, vocabulary: int, most: int, likeness: float, begin: Callable[[T | None], T]) -> None:
        self.vocabulary, self.most, self.likeness = vocabulary, most, likeness
        self._begin = begin
        self._kept: list[Context[T]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, tokens: Seq[int]) -> T:
        """What is known of the context of a text, which is its context's latest from now on.

        Args:
            tokens: at least one id below V.
        """
        own = self.fingerprint(tokens)
        alike = [float(context.centre @ own / np.linalg.norm(context.centre)) for context in self._kept]
        nearest = max(range(len(alike)), key=lambda i: (alike[i], i), default=None)
        if nearest is not None and alike[nearest] >= self.likeness:
            context = self._kept.pop(nearest)
            context.centre += own
        else:
            context = Context(own, self._begin(None if nearest is None else self._kept[nearest].found))
        self._kept.append(context)
        del self._kept[: -self.most]
        return context.found

    def fingerprint(self, tokens: Seq[int]) -> np.ndarray:
        """`[V]` float32 of length one."""
        counts = np.log1p(np.bincount(tokens, minlength=self.vocabulary).astype(np.float32))
        found: np.ndarray = counts / np.linalg.norm(counts)
        return found
