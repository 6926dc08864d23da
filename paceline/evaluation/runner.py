"""Run contestants against each other: same prompts, same number of tokens, interleaved, at equal bandwidth."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from paceline.evaluation.memory import Peak
from paceline.evaluation.samples import Contestant, Job, Run, Sample
from paceline.evaluation.timing import QUIET, Bandwidth, Neighbours, same_mode

#: A run during which the bandwidth changed or others computed is repeated, at most this often in all.
ATTEMPTS = 3
#: Tokens of the unmeasured first run, and prompts after which a contestant may be found too slow.
WARM_UP, TRIALS = 16, 2


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
        jobs: what they do, one after the other on every batch.
        device: where.
        fresh: drafters start each run knowing nothing of earlier prompts.
        progress: called before each run with what is about to happen.
        samples: what was measured so far, also by others; new samples are added at the end.
        least: a contestant that is slower than this many times plain decoding on its first prompts is left out.
        saved: called after each round.
        refused: by contestant (and job), why it does not take part any longer.
    """

    size: str
    contestants: Sequence[Contestant]
    jobs: Sequence[Job]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fresh: bool = True
    progress: Callable[[str], None] = lambda text: None
    samples: list[Sample] = field(default_factory=list)
    least: float = 0.0
    saved: Callable[[], None] = lambda: None
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bandwidth = Bandwidth(self.device)
        self._pace: dict[tuple[str, str], float] = {}
        self._out: set[tuple[str, str, Job]] = set()

    def warm_up(self, batch: Batch) -> None:
        """A short run of everybody, unmeasured: first runs allocate and compile. Also shows roughly who is fast."""
        for contestant in self.contestants:
            self.progress(f"{self.size}: warming up {contestant.side} {contestant.name}")
            for job in self.jobs:
                if (reason := contestant.refusal(job)) is not None:
                    self._leave_out(contestant, job, reason)
                    continue
                contestant.prepare()
                short = replace(job, max_new_tokens=min(WARM_UP, job.max_new_tokens), shortest=None)
                run = self._try(contestant, batch, short, job)
                if run is not None and run.seconds > run.first:
                    self._pace.setdefault(_who(contestant), run.decoded / (run.seconds - run.first))
            contestant.prepare()

    def play(self, batches: Sequence[Batch], repeats: int, deadline: float | None = None) -> bool:
        """Measure every batch `repeats` times. Returns whether all was done before `deadline` (`time.monotonic`)."""
        ranked = self._ranked()
        return all(
            self._round(batch, job, repeat, _rotated(ranked, turn), deadline)
            for turn, repeat, job, batch in self._rounds(batches, repeats)
        )

    def _rounds(self, batches: Sequence[Batch], repeats: int) -> Iterator[tuple[int, int, Job, Batch]]:
        """Turn, repeat, job and batch. Drafters that keep what they learn forget it before they see a prompt again."""
        for repeat in range(repeats):
            if self.fresh:
                for turn, batch in enumerate(batches):
                    yield from ((turn + repeat, repeat, job, batch) for job in self.jobs)
                continue
            for job in self.jobs:
                for contestant in self.contestants:
                    contestant.prepare()
                yield from ((turn + repeat, repeat, job, batch) for turn, batch in enumerate(batches))

    def _ranked(self) -> list[Contestant]:
        """Plain decoding of each side, then the others, the fastest first: what a budget should be spent on first."""
        pace = dict(self._pace)
        earlier = [s for s in self.samples if s.size == self.size and s.decode_rate]
        for who, group in itertools.groupby(sorted(earlier, key=_by), key=_by):
            pace[who] = statistics.median(s.decode_rate for s in group)
        leaders = [next(c for c in self.contestants if c.side == side) for side in self._sides()]
        rest = [c for c in self.contestants if c not in leaders]
        return [*leaders, *sorted(rest, key=lambda c: -pace.get(_who(c), 0.0))]

    def _sides(self) -> list[str]:
        return list(dict.fromkeys(c.side for c in self.contestants))

    def _round(self, batch: Batch, job: Job, repeat: int, order: list[Contestant], deadline: float | None) -> bool:
        """Everybody once who has not run yet; who ran in another mode than most runs once more."""
        done = {s.key for s in self.samples}
        todo = [c for c in order if not self._is_out(c, job) and self._key(c, batch, job, repeat) not in done]
        taken: dict[tuple[str, str], Sample] = {}
        complete = True
        for contestant in todo:
            if deadline is not None and time.monotonic() > deadline:
                complete = False
                break
            sample = self._measure(contestant, batch, job, repeat)
            if sample is not None:
                taken[_who(contestant)] = sample
        usual = _usual_bandwidth(taken.values())
        for contestant in todo if usual is not None and self.fresh and complete else ():
            first = taken.get(_who(contestant))
            if first is not None and not (first.stable and same_mode(first.bandwidth, usual or 0)):
                taken[_who(contestant)] = self._measure(contestant, batch, job, repeat) or first
        self.samples += [taken[_who(c)] for c in self.contestants if _who(c) in taken]
        if taken:
            self._leave_slow_out(job)
            self.saved()
        return complete

    def _leave_slow_out(self, job: Job) -> None:
        here = [s for s in self.samples if s.size == self.size and s.temperature == job.temperature]
        plain = {(s.workload, s.prompt, s.repeat): s for s in here if _by(s) == _who(self.contestants[0])}
        leaders = [next(c for c in self.contestants if c.side == side) for side in self._sides()]
        for contestant in self.contestants if self.least else ():
            mine = [s for s in here if _by(s) == _who(contestant)]
            pairs = [(s, plain.get((s.workload, s.prompt, s.repeat))) for s in mine]
            ratios = [p.seconds / s.seconds for s, p in pairs if p is not None]
            slow = len(ratios) >= TRIALS and statistics.median(ratios) < self.least
            if slow and contestant not in leaders and not self._is_out(contestant, job):
                reason = f"slower than {self.least:g} x plain decoding on its first {len(ratios)} prompts"
                self._leave_out(contestant, job, reason)

    def _is_out(self, contestant: Contestant, job: Job) -> bool:
        return (*_who(contestant), job) in self._out

    def _leave_out(self, contestant: Contestant, job: Job, reason: str) -> None:
        self._out.add((*_who(contestant), job))
        self.refused[f"{contestant.side} {contestant.name} ({self.size}, temperature {job.temperature:g})"] = reason

    def _key(
        self, contestant: Contestant, batch: Batch, job: Job, repeat: int
    ) -> tuple[str, str, str, int, float, str, str]:
        return self.size, batch.workload, batch.name, repeat, job.temperature, *_who(contestant)

    def _try(self, contestant: Contestant, batch: Batch, run: Job, job: Job) -> Run | None:
        """A run; one that fails ends the contestant's part in the job, not the benchmark (but for plain decoding)."""
        try:
            return contestant.run(batch.prompts, run)
        except Exception as error:
            if contestant is self.contestants[0]:
                raise
            self._leave_out(contestant, job, f"failed on {batch.name}: {type(error).__name__}: {error}")
            return None

    def _measure(self, contestant: Contestant, batch: Batch, job: Job, repeat: int) -> Sample | None:
        """One sample; repeated while the run is disturbed (but a drafter that keeps what it learns runs once)."""
        what = f"{self.size} {batch.workload} {batch.name}, temperature {job.temperature:g}"
        self.progress(f"{what}: {contestant.side} {contestant.name}")
        attempt, stable, run = 0, False, Run([], 0.0, 0.0, 0)
        while not stable and attempt < (ATTEMPTS if self.fresh else 1):
            attempt += 1
            contestant.prepare(self.fresh)
            peak = Peak(self.device)
            before = self.bandwidth.measure()
            peak.start()
            neighbours = Neighbours()
            done = self._try(contestant, batch, job, job)
            if done is None:
                return None
            run = done
            others, growth = neighbours.cores(), peak.growth()
            after = self.bandwidth.measure()
            stable = same_mode(before, after) and others <= QUIET
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
            bandwidth=(before + after) / 2,
            others=others,
            stable=stable,
            attempts=attempt,
            growth=growth,
            stats=asdict(run.stats) if run.stats is not None else None,
            temperature=job.temperature,
        )


def _who(contestant: Contestant) -> tuple[str, str]:
    return contestant.side, contestant.name


def _by(sample: Sample) -> tuple[str, str]:
    return sample.side, sample.method


def _rotated(ranked: list[Contestant], turn: int) -> list[Contestant]:
    """Plain decodings first, so that everything else can be compared however early the time is up; the rest in turn."""
    sides = len({c.side for c in ranked})
    leaders, rest = ranked[:sides], ranked[sides:]
    shift = turn % len(rest) if rest else 0
    return [*leaders, *rest[shift:], *rest[:shift]]


def _usual_bandwidth(samples: Iterable[Sample]) -> float | None:
    """A bandwidth of the mode that most of the stable samples ran in."""
    stable = [s.bandwidth for s in samples if s.stable]
    return max(stable, key=lambda b: sum(same_mode(b, other) for other in stable), default=None)


def batches(workload: str, prompts: Sequence[tuple[str, Sequence[int]]], size: int) -> list[Batch]:
    """Named prompts in groups of `size`; an incomplete last group is left out unless it is the only one."""
    groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    whole = [g for g in groups if len(g) == size] or groups[:1]
    return [Batch(workload, ", ".join(n for n, _ in g), tuple(tuple(p) for _, p in g)) for g in whole]


def interleaved(groups: Sequence[Sequence[Batch]]) -> list[Batch]:
    """Batches of all workloads, each spread evenly over the whole run: however early it ends, all were measured."""
    placed = [((i + 0.5) / len(group), batch) for group in groups for i, batch in enumerate(group)]
    return [batch for _, batch in sorted(placed, key=lambda pair: pair[0])]
