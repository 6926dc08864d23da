"""What this machine can do: bandwidth, and what a forward pass costs by its number of rows."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from paceline import native
from paceline.evaluation.provenance import provenance
from paceline.evaluation.timing import Bandwidth
from paceline.models.costs import ROWS, measure
from paceline.models.loading import fast_bfloat16

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


def installed() -> dict[str, str | None]:
    """Versions of optional packages, `None` where one is missing."""
    return {name: _version(name) for name in EXTRAS}


def survey(model: Any) -> dict[str, Any]:
    """Everything `paceline doctor` reports about this machine and a loaded model."""
    speeds = bandwidths(model.device)
    curve = measure(model, ROWS, CONTEXT, rounds=7)
    return provenance() | {
        "device": str(model.device),
        "bandwidth_bytes_per_second": {str(threads): value for threads, value in speeds.items()},
        "installed": installed(),
        "model": model.name,
        "dtype": str(model.module.dtype).removeprefix("torch."),
        "bfloat16_fast": model.device.type != "cpu" or fast_bfloat16(),
        "forward_path": model.path,
        "kernels": native.reason(),
        "weight_bytes": model.nbytes,
        "pass_context": min(CONTEXT, model.context),
        "pass_seconds": {str(rows): spent for rows, spent in curve.seconds.items()},
        "pass_relative": {str(rows): times for rows, times in curve.relative.items()},
        "free_rows": curve.free_rows(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
