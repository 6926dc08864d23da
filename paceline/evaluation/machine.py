"""What this machine can do: bandwidth, and what a forward pass costs by its number of rows."""

from __future__ import annotations

import importlib.metadata
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from paceline.evaluation.provenance import provenance
from paceline.evaluation.timing import Bandwidth, seconds
from paceline.tree import TokenTree

ROWS = (1, 2, 4, 8, 16, 32)
CONTEXT = 256
#: Optional packages and what they are for.
EXTRAS = {
    "fastapi": "serve",
    "uvicorn": "serve",
    "ray": "several machines",
    "xxhash": "training",
    "pytest": "tests",
    "ruff": "lint",
}


@dataclass(frozen=True)
class Curve:
    """Seconds of one pass over some number of rows (tree nodes) at a context of `context` tokens."""

    context: int
    seconds: dict[int, float]

    def relative(self) -> dict[int, float]:
        """The same in passes over one row."""
        one = self.seconds[min(self.seconds)]
        return {rows: spent / one for rows, spent in self.seconds.items()}

    def free_rows(self, tolerance: float = 1.25) -> int:
        """Most rows that cost at most `tolerance` times as much as one."""
        return max(rows for rows, times in self.relative().items() if times <= tolerance)


def bandwidths(device: torch.device) -> dict[int, float]:
    """Bytes a second by number of threads: one, and all that torch uses (on a GPU: its own memory, under 0)."""
    if device.type != "cpu":
        return {0: Bandwidth(device).measure()}
    threads = torch.get_num_threads()
    probe = Bandwidth(device)
    found: dict[int, float] = {}
    try:
        for count in dict.fromkeys((1, threads)):
            torch.set_num_threads(count)
            found[count] = probe.measure()
    finally:
        torch.set_num_threads(threads)
    return found


@torch.inference_mode()
def pass_curve(model: Any, rows: tuple[int, ...] = ROWS, context: int = CONTEXT, rounds: int = 7) -> Curve:
    """Measure forward passes over chains of drafted tokens."""
    context = min(context, model.context - max(rows) - 1)
    cache = model.new_cache(1)
    row = cache.allocate()
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, context + max(rows)).tolist()
    model.prefill(cache, row, tokens[:context])

    def once(count: int) -> None:
        model.score(cache, [row], [TokenTree.chain(tokens[context], tokens[context + 1 : context + count])])
        cache.crop(row, context)

    found = {}
    for count in rows:
        once(count)
        found[count] = statistics.median(seconds(partial(once, count), model.device) for _ in range(rounds))
    return Curve(context, found)


def installed() -> dict[str, str | None]:
    """Versions of optional packages, `None` where one is missing."""
    return {name: _version(name) for name in EXTRAS}


def survey(model: Any) -> dict[str, Any]:
    """Everything `paceline doctor` reports about this machine and a loaded model."""
    speeds = bandwidths(model.device)
    curve = pass_curve(model)
    return provenance() | {
        "device": str(model.device),
        "bandwidth_bytes_per_second": {str(threads): value for threads, value in speeds.items()},
        "installed": installed(),
        "model": model.name,
        "dtype": str(model.module.dtype).removeprefix("torch."),
        "bfloat16_native": torch.ops.mkldnn._is_mkldnn_bf16_supported() if model.device.type == "cpu" else True,
        "forward_path": model.path,
        "weight_bytes": model.nbytes,
        "pass_context": curve.context,
        "pass_seconds": {str(rows): spent for rows, spent in curve.seconds.items()},
        "pass_relative": {str(rows): times for rows, times in curve.relative().items()},
        "free_rows": curve.free_rows(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
