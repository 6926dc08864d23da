"""How far a run is, how high its learning rate, and its optimizers."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

import torch
from torch import nn


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


def make_optimizers(
    model: nn.Module, name: str, lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """`adamw`, or `muon` for the layers' matrices with AdamW for embeddings and norms.

    Muon (Jordan et al. 2024) orthogonalises a matrix's momentum; scaled to AdamW's step size (`match_rms_adamw`)
    it shares AdamW's learning rate, and at this size it needs roughly a third fewer tokens for the same loss.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
    ]
    if name == "adamw":
        groups[0]["params"] = [*matrices, *groups[0]["params"]]
    elif name != "muon":
        raise ValueError(f"unknown optimizer {name!r}: choose muon or adamw")
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
    ]
    if name == "muon" and matrices:
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


def set_rate(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Give every group of every optimizer the learning rate `lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
