"""What statistics say, under the names that other tools use."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from paceline.requests import Stats

PHASES = ("prefill", "draft", "score", "judge", "keep", "other")


def acceptance(stats: Stats) -> list[float]:
    """Share of steps with a draft of that depth that kept it; entry 0 is depth 1."""
    kept = [*stats.accepted_at, *[0] * (len(stats.drafted_at) - len(stats.accepted_at))]
    return [a / d if d else 0.0 for a, d in zip(kept, stats.drafted_at, strict=False)]


def stats_json(stats: Stats) -> dict[str, Any]:
    """All counts and seconds, and the derived figures.

    `mean_acceptance_length` counts the bonus token (as vLLM, SGLang and Spec-Bench do), `mean_accepted_drafts`
    does not.
    """
    drafts = stats.accepted / stats.forward_passes if stats.forward_passes else 0.0
    return dataclasses.asdict(stats) | {
        "seconds": stats.seconds,
        "tokens_per_pass": stats.tokens_per_pass,
        "mean_acceptance_length": 1 + drafts,
        "mean_accepted_drafts": drafts,
        "acceptance_by_depth": acceptance(stats),
        "overhead": stats.overhead,
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (all equal for one value). Raises `ValueError` for none."""
    if len(values) < 2:
        return (values[0],) * 3 if values else _empty()
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _empty() -> tuple[float, float, float]:
    raise ValueError("quartiles of nothing")
