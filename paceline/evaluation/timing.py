"""Time that can be compared: memory bandwidth before and after every run, and modes.

Decoding one token reads all weights, so its speed is the memory's speed. On a virtual machine that speed may
jump between levels by itself, by a factor of two and within seconds. A run is therefore tagged with the
bandwidth around it; runs are compared only at equal bandwidth (a *mode*). And a run is worth nothing while other
programs compute: threads that wait for each other then lose far more than the share that was taken.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch

#: Cores that other programs may use during a run.
QUIET = 0.15
#: Bandwidths closer than this factor are one mode; modes seen so far differ by 1.5 and more.
SAME = 1.25
#: A mode that fewer than this share of the runs were in is a disturbance.
RARE = 0.1
#: Bytes that a probe reads: far more than any cache level of a CPU holds.
PROBE_BYTES = 192 * 2**20


class Bandwidth:
    """Measures how fast the device reads memory, with as many threads as torch uses.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        if self.device.type == "cpu":
            self._data = huge_pages(PROBE_BYTES)
        else:
            self._data = torch.ones(4 * PROBE_BYTES // 4, device=self.device)

    def measure(self, rounds: int = 5) -> float:
        """Bytes a second, the best of a few rounds (some 20 ms in all on a CPU)."""
        best = min(seconds(self._data.amax, self.device) for _ in range(rounds))
        return self._data.nbytes / best


class Neighbours:
    """How much other programs compute, from the system's clocks (whose ticks are 10 ms)."""

    def __init__(self) -> None:
        self._began, self._others = time.perf_counter(), _others_seconds()

    def cores(self) -> float:
        """Cores that others used on average since the start, ticks' uncertainty taken off."""
        spent = time.perf_counter() - self._began
        return max(0.0, _others_seconds() - self._others - 0.04) / spent if spent > 0 else 0.0


def _others_seconds() -> float:
    own, all_of_us = psutil.Process().cpu_times(), psutil.cpu_times()
    busy = sum(all_of_us) - all_of_us.idle - getattr(all_of_us, "iowait", 0.0)
    busy -= getattr(all_of_us, "guest", 0.0) + getattr(all_of_us, "guest_nice", 0.0)  # counted as user time already
    return float(busy - own.user - own.system)


def huge_pages(nbytes: int) -> torch.Tensor:
    """Float32 ones, on large pages where the system has them: else the probe measures page look-ups too."""
    try:
        memory = mmap.mmap(-1, nbytes)
        memory.madvise(mmap.MADV_HUGEPAGE)
        data = torch.frombuffer(memory, dtype=torch.float32)
    except (OSError, AttributeError, ValueError):
        data = torch.empty(nbytes // 4)
    return data.fill_(1.0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long one call takes, with everything it started on the device."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def same_mode(a: float, b: float) -> bool:
    """Whether two bandwidths belong together."""
    return max(a, b) <= SAME * min(a, b)


def modes(bandwidths: Sequence[float]) -> list[list[float]]:
    """Bandwidths in groups, slowest first, without rare ones: a group ends where the next value is far away."""
    groups: list[list[float]] = []
    for value in sorted(bandwidths):
        if groups and same_mode(groups[-1][-1], value):
            groups[-1].append(value)
        else:
            groups.append([value])
    return [group for group in groups if len(group) >= RARE * len(bandwidths)]
