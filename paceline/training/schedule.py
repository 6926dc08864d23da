"""How far a run is, how high its learning rate, and its optimizers."""

from __future__ import annotations

import re
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("muon", "adamw")
EMBEDDING = re.compile(r"embed|lm_head")


def rate(progress: float, warmup: float, decay: float) -> float:
    """Warm-up, stable, decay: the learning rate's factor at `progress` in [0, 1] of the budget.

    Linear up during the first `warmup`, 1 in between, and `1 - sqrt(x)` over the last `decay`.
    """
    if progress < warmup:
        return max(progress, 1e-3 * warmup) / warmup
    into_decay = max(0.0, (progress - (1 - decay)) / decay) if decay else 0.0
    return max(0.0, 1 - into_decay**0.5)


class ActiveClock:
    """Seconds of work, from the durations of steps.

    A step counts at most three times the median of the last steps, so that suspending the process (or the
    machine) does not eat the time budget.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.recent: deque[float] = deque(maxlen=31)

    def add(self, duration: float) -> None:
        """Count one step of `duration` seconds."""
        if len(self.recent) >= 5:
            duration = min(duration, 3 * statistics.median(self.recent))
        self.recent.append(duration)
        self.seconds += duration


def make_optimizers(model: nn.Module, name: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """`adamw`, or `muon` for the layers' matrices with AdamW for embeddings and norms.

    Muon (Jordan et al. 2024) orthogonalises a matrix's momentum; scaled to AdamW's step size
    (`match_rms_adamw`) it shares AdamW's learning rate, and it usually needs fewer tokens for the same loss.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and not EMBEDDING.search(n)]
    embeddings = [p for n, p in model.named_parameters() if p.ndim == 2 and EMBEDDING.search(n)]
    norms = [p for p in model.parameters() if p.ndim == 1]
    decayed = embeddings if name == "muon" else matrices + embeddings
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)]
    if name == "muon":
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


def set_rate(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Give every group of every optimizer the learning rate `lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
