"""Run contestants against each other: same prompts, same number of tokens, interleaved, at equal bandwidth."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from paceline.evaluation.memory import Peak
from paceline.evaluation.samples import Contestant, Job, Run, Sample
from paceline.evaluation.timing import QUIET, Bandwidth, Neighbours, same_mode

#: A run during which the bandwidth changed or others computed is repeated, at most this often in all.
ATTEMPTS = 3


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated together.

    Attributes:
        workload: their category.
        name: names of the prompts.
        prompts: token ids.
    """

    workload: str
    name: str
    prompts: tuple[tuple[int, ...], ...]


@dataclass
class Arena:
    """Measures contestants of one model size.

    Attributes:
        size: the model, for reports.
        contestants: who takes part; the first of each side is its plain decoding.
        job: what they do.
        device: where.
        fresh: drafters start each run knowing nothing of earlier prompts.
        progress: called before each run with what is about to happen.
        samples: what was measured so far.
    """

    size: str
    contestants: Sequence[Contestant]
    job: Job
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fresh: bool = True
    progress: Callable[[str], None] = lambda text: None
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bandwidth = Bandwidth(self.device)

    def warm_up(self, batch: Batch) -> None:
        """A short run of everybody, unmeasured: first runs allocate and compile."""
        for contestant in self.contestants:
            self.progress(f"{self.size}: warming up {contestant.side} {contestant.name}")
            contestant.prepare()
            contestant.run(batch.prompts, Job(min(8, self.job.max_new_tokens), self.job.temperature))
            contestant.prepare()

    def play(self, batches: Sequence[Batch], repeats: int, deadline: float | None = None) -> bool:
        """Measure every batch `repeats` times. Returns whether all was done before `deadline` (`time.monotonic`)."""
        done = Counter((s.workload, s.prompt, s.repeat) for s in self.samples)
        for repeat in range(repeats):
            for contestant in self.contestants:
                contestant.prepare()
            for turn, batch in enumerate(batches):
                if done[batch.workload, batch.name, repeat]:
                    continue
                if deadline is not None and time.monotonic() > deadline:
                    return False
                self.samples += self._round(batch, repeat, turn + repeat)
        return True

    def _round(self, batch: Batch, repeat: int, turn: int) -> list[Sample]:
        """Everybody once, in an order that rotates; who ran in another mode than most runs once more."""
        shift = turn % len(self.contestants)
        order = [*self.contestants[shift:], *self.contestants[:shift]]
        samples = {id(c): self._measure(c, batch, repeat) for c in order}
        usual = _usual_bandwidth(samples.values())
        if usual is not None and self.fresh:
            for contestant in order:
                sample = samples[id(contestant)]
                if not (sample.stable and same_mode(sample.bandwidth, usual)):
                    samples[id(contestant)] = self._measure(contestant, batch, repeat)
        return [samples[id(c)] for c in self.contestants]

    def _measure(self, contestant: Contestant, batch: Batch, repeat: int) -> Sample:
        """One sample; repeated while the run is disturbed (but a drafter that keeps what it learns runs once)."""
        self.progress(f"{self.size} {batch.workload} {batch.name}: {contestant.side} {contestant.name}")
        attempt, stable = 0, False
        while not stable and attempt < (ATTEMPTS if self.fresh else 1):
            attempt += 1
            contestant.prepare(self.fresh)
            peak = Peak(self.device)
            before = self.bandwidth.measure()
            peak.start()
            neighbours = Neighbours()
            run = contestant.run(batch.prompts, self.job)
            others, growth = neighbours.cores(), peak.growth()
            after = self.bandwidth.measure()
            stable = same_mode(before, after) and others <= QUIET
        return self._sample(contestant, batch, repeat, run, (before + after) / 2, others, stable, attempt, growth)

    def _sample(
        self,
        contestant: Contestant,
        batch: Batch,
        repeat: int,
        run: Run,
        bandwidth: float,
        others: float,
        stable: bool,
        attempts: int,
        growth: int | None,
    ) -> Sample:
        return Sample(
            size=self.size,
            workload=batch.workload,
            prompt=batch.name,
            repeat=repeat,
            side=contestant.side,
            method=contestant.name,
            seconds=run.seconds,
            first=run.first,
            decoded=run.decoded,
            tokens=run.tokens,
            bandwidth=bandwidth,
            others=others,
            stable=stable,
            attempts=attempts,
            growth=growth,
            stats=asdict(run.stats) if run.stats is not None else None,
        )


def _usual_bandwidth(samples: Iterable[Sample]) -> float | None:
    """A bandwidth of the mode that most of the stable samples ran in."""
    stable = [s.bandwidth for s in samples if s.stable]
    return max(stable, key=lambda b: sum(same_mode(b, other) for other in stable), default=None)


def batches(workload: str, prompts: Sequence[tuple[str, Sequence[int]]], size: int) -> list[Batch]:
    """Named prompts in groups of `size`; an incomplete last group is left out unless it is the only one."""
    groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    whole = [g for g in groups if len(g) == size] or groups[:1]
    return [Batch(workload, ", ".join(n for n, _ in g), tuple(tuple(p) for _, p in g)) for g in whole]
