"""What a benchmark run is made of: contestants, their runs, and samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from paceline.requests import Stats

Prompts = Sequence[Sequence[int]]
#: The multiples of which are spread most evenly between whole numbers.
GOLDEN = (5**0.5 - 1) / 2


@dataclass
class Run:
    """One measured generation of a batch of prompts.

    Attributes:
        tokens: generated ids of each prompt.
        seconds: end to end, prefill included.
        first: seconds until every prompt had its first token.
        decoded: tokens that came after that moment.
        stats: Paceline's own statistics, summed over the batch.
    """

    tokens: list[list[int]]
    seconds: float
    first: float
    decoded: int
    stats: Stats | None = None


@dataclass(frozen=True)
class Job:
    """What every contestant is asked to do: the same prompts, numbers of tokens and randomness.

    Attributes:
        max_new_tokens: of the longest text.
        shortest: tokens of a batch's shortest text; `None`: all are as long.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    shortest: int | None = None

    def lengths(self, count: int) -> list[int]:
        """Tokens of each of so many texts of a batch, evenly spread however many they are, the shortest first."""
        if self.shortest is None:
            return [self.max_new_tokens] * count
        spread = self.max_new_tokens - self.shortest
        return [self.shortest + round(i * GOLDEN % 1 * spread) for i in range(count)]


class Contestant(ABC):
    """A way to generate text.

    Attributes:
        side, name: who it is, in reports.
        held: bytes of memory that it keeps for itself beside the model.
    """

    side: ClassVar[str]
    name: str
    held: int = 0

    def refusal(self, job: Job) -> str | None:
        """Why it cannot do this job, in a sentence; `None` when it can."""
        return None

    def prepare(self, fresh: bool = True) -> None:
        """Get ready, outside the measured time; `fresh` forgets what was learned from earlier prompts."""
        return

    @abstractmethod
    def run(self, prompts: Prompts, job: Job) -> Run:
        """Generate."""


@dataclass
class Sample:
    """One measured run with its circumstances, as stored in a report.

    Attributes:
        size, workload, prompt, repeat, temperature: which run; `prompt` names the batch's prompts.
        side, method: who ran.
        bandwidth: bytes a second around the run: the mean of the probes before and after.
        others: cores that other programs used during the run.
        stable: whether the two probes belong to one mode and the machine was quiet; others are not compared.
        growth: bytes the process grew by at most during the run.
    """

    size: str
    workload: str
    prompt: str
    repeat: int
    side: str
    method: str
    seconds: float
    first: float
    decoded: int
    tokens: list[list[int]]
    bandwidth: float
    stable: bool
    others: float = 0.0
    attempts: int = 1
    growth: int | None = None
    stats: dict[str, Any] | None = field(default=None, repr=False)
    temperature: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, int, float, str, str]:
        """What no other sample of a report shares."""
        return self.size, self.workload, self.prompt, self.repeat, self.temperature, self.side, self.method

    @property
    def count(self) -> int:
        """Generated tokens."""
        return sum(len(tokens) for tokens in self.tokens)

    @property
    def rate(self) -> float:
        """Tokens a second, end to end."""
        return self.count / self.seconds

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first ones."""
        spent = self.seconds - self.first
        return self.decoded / spent if spent > 0 and self.decoded else 0.0
