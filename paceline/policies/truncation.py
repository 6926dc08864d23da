"""What truncations share: they keep a set of tokens a row and drop the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from paceline.policies.base import Policy, Stage, State

#: Candidates sorted on a CPU; more are, and at last the whole vocabulary, where these do not hold the mass
#: asked for. On a GPU sorting is quick, while asking whether they do would wait for the device.
CANDIDATES = (512, 8192)


class Truncation(Policy):
    """A stateless policy that drops all tokens outside a set; the kept scores stay as they are."""

    stage = Stage.TRUNCATION

    @abstractmethod
    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        """`[n, V]` bool: the kept tokens of `[n, V]` scores, at least one a row that has a finite score."""

    def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
        return scores if self.neutral else torch.where(self.keep(scores), scores, -torch.inf)


def best(scores: torch.Tensor) -> torch.Tensor:
    """`[n, V]` bool: the best token of each row, with those equal to it."""
    return scores >= scores.amax(-1, keepdim=True)


def shortest_prefix(key: torch.Tensor, p: torch.Tensor, mass: float) -> torch.Tensor:
    """Tokens in the order of descending key until their probability reaches a mass.

    Args:
        key: `[n, V]`; equal keys are ordered by token id.
        p: `[n, V]` probabilities.
        mass: in (0, 1]; the token that reaches it is kept, and the first token always.

    Returns:
        `[n, V]` bool.
    """
    for size in CANDIDATES if key.device.type == "cpu" else ():
        if size < key.shape[-1]:
            leading = key.topk(size)
            # Ordered by id first, so that the stable sort puts the lowest id of equal keys first.
            index = leading.indices.sort(dim=-1).values
            index = index.gather(-1, _falling(key.gather(-1, index)))
            kept = _reaching(p.gather(-1, index), mass)
            # Tokens with the last candidate's key may be missing; the prefix is whole if it ends before them.
            ends = key.gather(-1, index).masked_fill(~kept, torch.inf).amin(-1)
            if bool((ends > leading.values[:, -1]).all()):
                return torch.zeros_like(key, dtype=torch.bool).scatter_(-1, index, kept)
    index = _falling(key)
    kept = _reaching(p.gather(-1, index), mass)
    return torch.zeros_like(key, dtype=torch.bool).scatter_(-1, index, kept)


def _falling(key: torch.Tensor) -> torch.Tensor:
    """`[n, k]` int64: positions by descending key, equal keys in the order they stand in."""
    return key.sort(dim=-1, descending=True, stable=True).indices


def _reaching(p: torch.Tensor, mass: float) -> torch.Tensor:
    """`[n, k]` bool: sorted tokens before which less than the mass lies; float64, for V may be large."""
    before = torch.nn.functional.pad(p.cumsum(-1, dtype=torch.float64)[:, :-1], (1, 0))
    kept = before < mass
    kept[:, 0] = True
    return kept
