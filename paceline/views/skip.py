"""Layer skipping: every token goes through all sub-blocks but a fixed set.

Attention and feed-forward sub-blocks are left out one by one, as in Draft & Verify, where the set is searched for by
the model's own acceptance; here it is given. The prompt is read in the same way, so the keys of a skipped attention
sub-block are never written and never read.

Paper: Zhang et al., "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from paceline.errors import BadRequest
from paceline.models.views import Skip, View, ViewRule
from paceline.registry import Guarantee, method


@method(
    name="skip",
    kind="view",
    guarantee=Guarantee.LOSSY,
    knob="attention and mlp",
    summary="All tokens go without the attention and feed-forward sub-blocks of given layers.",
    paper="Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding",
    year=2023,
    needs={"views"},
)
@dataclass(frozen=True)
class SkippedBlocks(ViewRule):
    """Fixed sets of sub-blocks.

    Attributes:
        attention: layers whose attention is left out, counted from 0: numbers, or a text such as `"2 3"`.
        mlp: layers whose feed-forward sub-block is left out. Both empty: the whole model.
    """

    attention: str | int | Iterable[int] = ""
    mlp: str | int | Iterable[int] = ""

    def __post_init__(self) -> None:
        for name in ("attention", "mlp"):
            found = _numbers(name, getattr(self, name))
            object.__setattr__(self, name, " ".join(map(str, sorted(found))))

    def check(self, layers: int) -> None:
        self._skip.check(layers)

    def view(self, generated: np.ndarray, layers: int) -> View:
        return self._skip

    @property
    def _skip(self) -> Skip:
        return Skip(_numbers("attention", self.attention), _numbers("mlp", self.mlp))


def _numbers(name: str, given: str | int | Iterable[int]) -> frozenset[int]:
    """The layers that a knob names. Raises `BadRequest`."""
    layers = given.split() if isinstance(given, str) else [given] if isinstance(given, int) else given
    try:
        return frozenset(map(int, layers))
    except (TypeError, ValueError):
        raise BadRequest(f"skip({name}={given!r}): numbers of layers are needed, as in skip({name}='2 3')") from None
