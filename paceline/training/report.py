"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Reporter:
    """Shows step, loss, tokens per second and the time left; a context manager around the loop."""

    def __init__(self, console: Console | None = None, log_seconds: float = 30.0) -> None:
        self.console = console or Console(stderr=True)
        self.log_seconds = log_seconds
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("training", total=1.0)
        self.average: float | None = None
        self.speed: float | None = None
        self.seconds = 0.0
        self.logged = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, progress: float, loss: float, tokens: int, seconds: float) -> None:
        """Show a step of `tokens` tokens: loss in nats (smoothed), `seconds` of work since the start."""
        speed = tokens / max(seconds - self.seconds, 1e-6)
        self.seconds = seconds
        self.average = loss if self.average is None else 0.95 * self.average + 0.05 * loss
        self.speed = speed if self.speed is None else 0.95 * self.speed + 0.05 * speed
        left = seconds * (1 - progress) / max(progress, 1e-6)
        line = f"step {step}  loss {self.average:.3f}  {self.speed:,.0f} tokens/s  {left / 60:.1f} min left"
        self.bar.update(self.task, completed=min(progress, 1.0), description=line)
        if self.bar.disable and time.monotonic() - self.logged > self.log_seconds:
            self.logged = time.monotonic()
            self.console.print(f"{progress:6.1%}  {line}", highlight=False, soft_wrap=True)

    def validated(self, step: int, bits: float) -> None:
        """Report a validation result."""
        self.console.print(f"step {step}  validation {bits:.4f} bits per byte", highlight=False, soft_wrap=True)

    def stopped(self, step: int) -> None:
        """Say that a signal ended the run before its budget did."""
        self.console.print(f"stopped after step {step}; --resume goes on", style="yellow", highlight=False)
