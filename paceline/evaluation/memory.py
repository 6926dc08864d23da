"""Memory of this process."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import torch


def resident(device: torch.device, collect: bool = True) -> int:
    """Bytes in use: resident memory, or on a GPU what torch has allocated there; at first, garbage is collected."""
    if collect:
        gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class Peak:
    """How much memory grew at most since `start`; `None` where the system does not tell."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._before, self._known = device, 0, False

    def start(self) -> None:
        """Forget earlier peaks."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before, self._known = torch.cuda.memory_allocated(self.device), True
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        except OSError:
            self._known = False
        else:
            self._before, self._known = psutil.Process().memory_info().rss, True

    def growth(self) -> int | None:
        """Bytes above the start."""
        if not self._known:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        return max(0, peak - self._before)
