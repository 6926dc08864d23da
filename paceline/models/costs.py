"""What a forward pass costs by the number of tokens it scores, measured on the model and device at hand.

Up to some number of rows a pass costs what one row costs, since reading the weights takes the time; beyond it the time
grows with the rows. Where the bend is depends on the machine, so it is measured: a draft is worth its nodes only if
the tokens they bring take less time than the nodes cost.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from paceline.tree import TokenTree

clock = time.perf_counter
#: Rows that are measured, and the tokens that lie before them.
ROWS = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32)
CONTEXT = 128


@dataclass(frozen=True)
class PassCosts:
    """Seconds of one pass over some number of rows.

    Attributes:
        seconds: by number of rows, at least two different ones.
    """

    seconds: Mapping[int, float]

    def __call__(self, rows: int) -> float:
        """Seconds of a pass over `rows` rows, interpolated; beyond the last one measured, the slope goes on."""
        known, seconds, slope = self._curve
        if rows >= known[-1]:
            return seconds[-1] + slope * (rows - known[-1])
        above = max(1, bisect_right(known, rows))
        low, high, least, most = known[above - 1], known[above], seconds[above - 1], seconds[above]
        return least + (most - least) / (high - low) * max(0, rows - low)

    def each(self, rows: np.ndarray) -> np.ndarray:
        """The same of every number of rows in an array."""
        known, seconds, slope = self._curve
        return np.interp(rows, known, seconds) + slope * np.maximum(rows - known[-1], 0)

    @cached_property
    def _curve(self) -> tuple[list[int], list[float], float]:
        """Rows measured, their seconds, and by how much these rise with every further row."""
        known = sorted(self.seconds)
        seconds = [self.seconds[rows] for rows in known]
        # Two passes alone may have been held up differently; the curve does not become flatter than it is on the whole.
        return known, seconds, max((seconds[-1] - seconds[k]) / (known[-1] - known[k]) for k in (0, -2))

    @property
    def relative(self) -> dict[int, float]:
        """The same in passes over one row."""
        one = self.seconds[min(self.seconds)]
        return {rows: spent / one for rows, spent in sorted(self.seconds.items())}

    def free_rows(self, tolerance: float = 1.25) -> int:
        """Most rows that cost at most `tolerance` times as much as one."""
        return max(rows for rows, times in self.relative.items() if times <= tolerance)


@torch.inference_mode()
def measure(model: Any, rows: Sequence[int] = ROWS, context: int = CONTEXT, rounds: int = 3) -> PassCosts:
    """Time passes over chains of random tokens; two to three seconds for half a billion weights on a CPU.

    A machine's speed may change every few seconds, by half where others share its memory. So every pass is timed beside
    one of the fewest rows, and of how many times as long it takes the median counts: as if all had run at one speed.

    Args:
        model: a `CausalModel`.
        rows: numbers of rows to measure.
        context: tokens in the cache before them.
        rounds: passes of each size.
    """
    context = max(1, min(context, model.longest, model.context - max(rows) - 1))
    rows = [count for count in rows if context + count <= model.limit(context)]
    cache = model.new_cache(1)
    row = cache.allocate()
    row.prompt = context
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, context + max(rows)).tolist()
    model.prefill(cache, row, tokens[:context])

    def once(count: int) -> float:
        began = clock()
        model.score(cache, [row], [TokenTree.chain(tokens[context], tokens[context + 1 : context + count])])
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        spent = clock() - began
        cache.crop(row, context)
        return spent

    once(rows[0])
    pairs = np.array([[(once(rows[0]), once(count)) for count in rows] for _ in range(rounds)])
    unit, times = np.median(pairs[..., 0]), np.median(pairs[..., 1] / pairs[..., 0], 0)
    return PassCosts(_rising(dict(zip(rows, (unit * times).tolist(), strict=True))))


def _rising(found: dict[int, float]) -> dict[int, float]:
    """More rows never cost less: where they were measured so, by chance, both cost the smaller time."""
    least, rising = float("inf"), {}
    for count in sorted(found, reverse=True):
        least = min(least, found[count])
        rising[count] = least
    return dict(sorted(rising.items()))
