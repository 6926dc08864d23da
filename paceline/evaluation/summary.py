"""From samples to figures: medians, spreads and speed-ups of runs that may be compared."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.evaluation import own, peers
from paceline.evaluation.equality import repetition
from paceline.evaluation.measures import PHASES, acceptance, quartiles
from paceline.evaluation.samples import Sample
from paceline.evaluation.timing import modes
from paceline.requests import Stats

#: What speed-ups are measured against.
OWN_PLAIN, PEER_PLAIN, PEER_BEST = "paceline plain", "transformers plain", "transformers best"
#: The row that takes all workloads together.
ALL = "all"


class Modes:
    """Names for the bandwidths of a benchmark: S and F where there were two, numbers where there were more.

    Attributes:
        busy: whether most runs were disturbed; then they count all the same, for there is nothing better.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.busy = sum(s.stable for s in samples) < len(samples) / 2
        groups = modes([s.bandwidth for s in samples if s.stable or self.busy])
        self.names = {1: ["one"], 2: ["S", "F"]}.get(len(groups), [str(i + 1) for i in range(len(groups))])
        self.bandwidths = dict(zip(self.names, (statistics.median(g) for g in groups), strict=True))
        self._groups = groups

    def of(self, sample: Sample) -> str | None:
        """The sample's mode; `None` when the run was disturbed, or in a mode that hardly any other was in."""
        known = zip(self.names, self._groups, strict=True)
        found = (name for name, group in known if group[0] <= sample.bandwidth <= group[-1])
        return next(found, None) if sample.stable or self.busy else None


@dataclass
class Spread:
    """Median and quartiles of `n` values."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """`None` of nothing."""
        if not values:
            return None
        low, middle, high = quartiles(values)
        return cls(middle, low, high, len(values))


@dataclass
class SpeedUp:
    """One method against another, over runs of the same prompt in the same mode.

    Attributes:
        ratio: of end-to-end speeds, by prompt and run.
        decode: the same without the time to the first token.
        totals: all of the other's seconds by all of its own.
    """

    ratio: Spread
    decode: Spread
    totals: float


@dataclass
class Row:
    """One method on one workload at one temperature.

    Attributes:
        rate, decode_rate: tokens a second by mode.
        first: seconds to the first token, by mode.
        bound: tokens a second by mode if each token read all weights once at full bandwidth.
        speed_up: by what it is measured against.
        best_peer: which of transformers' modes is the best here.
        tokens_per_pass, acceptance, shares, overhead: Paceline only, see `Stats`.
        repetition: share of the output that loops; acceptance on looping text says little.
        phases: seconds a token in each phase of `Stats`, prefill included; Paceline only.
        growth: bytes of memory a run needed at most.
        memory: the same with the model's weights and what the method keeps for itself.
        identical: against whom, and what was found (see `paceline.evaluation.bench`).
        unstable: samples left out because they were disturbed, or in a rare mode.
    """

    size: str
    workload: str
    side: str
    method: str
    samples: int
    unstable: int
    rate: dict[str, Spread]
    decode_rate: dict[str, Spread]
    first: dict[str, Spread]
    bound: dict[str, float]
    speed_up: dict[str, SpeedUp] = field(default_factory=dict)
    best_peer: str | None = None
    tokens_per_pass: float | None = None
    acceptance: list[float] | None = None
    shares: dict[str, float] | None = None
    overhead: float | None = None
    repetition: float = 0.0
    growth: int | None = None
    phases: dict[str, float] | None = None
    memory: int | None = None
    temperature: float = 0.0
    identical: dict[str, Any] = field(default_factory=dict)


def summarise(samples: Sequence[Sample], weight_bytes: dict[str, float], found: Modes) -> list[Row]:
    """A row for each size, temperature, workload and method, in the order in which they ran; then all workloads."""
    groups: dict[tuple[str, float], list[Sample]] = {}
    for s in sorted(samples, key=lambda s: s.temperature):
        groups.setdefault((s.size, s.temperature), []).append(s)
    rows = []
    for size in dict.fromkeys(s.size for s in samples):
        workloads = list(dict.fromkeys(s.workload for s in samples if s.size == size))
        for group in (g for (name, _), g in groups.items() if name == size):
            for workload in [*workloads, *([ALL] if len(workloads) > 1 else [])]:
                part = [s for s in group if workload in (s.workload, ALL)]
                rows += _rows(workload, part, weight_bytes[size], found)
    return rows


def _rows(workload: str, group: Sequence[Sample], weight_bytes: float, found: Modes) -> list[Row]:
    by: dict[tuple[str, str], list[Sample]] = {}
    for s in group:
        by.setdefault((s.side, s.method), []).append(s)
    best = best_peer(group, found)
    against = {OWN_PLAIN: (own.SIDE, own.PLAIN), PEER_PLAIN: (peers.SIDE, peers.PLAIN)}
    if best is not None:
        against[PEER_BEST] = (peers.SIDE, best)
    rows = []
    for mine in by.values():
        row = _row(workload, mine, weight_bytes, found)
        for name, other in against.items():
            speed_up = compare(mine, by.get(other, []), found)
            if speed_up is not None:
                row.speed_up[name] = speed_up
        row.best_peer = best
        rows.append(row)
    return rows


def _row(workload: str, mine: list[Sample], weight_bytes: float, found: Modes) -> Row:
    one = mine[0]
    row = Row(
        one.size,
        workload,
        one.side,
        one.method,
        temperature=one.temperature,
        samples=len(mine),
        unstable=sum(found.of(s) is None for s in mine),
        rate=_by_mode(mine, found, lambda s: s.rate),
        decode_rate=_by_mode(mine, found, lambda s: s.decode_rate),
        first=_by_mode(mine, found, lambda s: s.first),
        bound={name: bandwidth / weight_bytes for name, bandwidth in found.bandwidths.items()},
        repetition=statistics.fmean(repetition(tokens) for s in mine for tokens in s.tokens),
        growth=max((s.growth for s in mine if s.growth is not None), default=None),
    )
    kept = [s.stats for s in mine if s.stats is not None]
    if kept:
        total = Stats()
        for stats in kept:
            total.add(Stats(**stats))
        row.tokens_per_pass, row.acceptance, row.overhead = total.tokens_per_pass, acceptance(total), total.overhead
        row.shares = {phase: getattr(total, phase) / total.seconds for phase in PHASES}
        row.phases = {phase: getattr(total, phase) / total.tokens for phase in PHASES}
    return row


def best_peer(group: Sequence[Sample], found: Modes) -> str | None:
    """Which of transformers' modes is fastest on these samples, relative to its plain decoding."""
    plain = _of(group, peers.SIDE, peers.PLAIN)
    methods = dict.fromkeys(s.method for s in group if s.side == peers.SIDE)
    against = {m: compare(_of(group, peers.SIDE, m), plain, found) for m in methods}
    return max((m for m, s in against.items() if s), key=lambda m: against[m].totals, default=None)  # type: ignore[union-attr]


def compare(mine: Sequence[Sample], others: Sequence[Sample], found: Modes) -> SpeedUp | None:
    """How much faster `mine` are: each against the other's median for the same prompt in the same mode (equal work)."""
    table: dict[tuple[str, str, str], list[Sample]] = {}
    for s in others:
        if (mode := found.of(s)) is not None:
            table.setdefault((s.workload, s.prompt, mode), []).append(s)
    pairs = [(s, table.get((s.workload, s.prompt, found.of(s) or ""))) for s in mine]
    matched = [(s, o) for s, o in pairs if o]
    if not matched:
        return None
    theirs = [statistics.median(o.seconds for o in os) for _, os in matched]
    ratio = Spread.of([other / s.seconds for (s, _), other in zip(matched, theirs, strict=True)])
    with_decode = [(s, os) for s, os in matched if s.decode_rate and all(o.decode_rate for o in os)]
    decode = Spread.of([s.decode_rate / statistics.median(o.decode_rate for o in os) for s, os in with_decode])
    assert ratio is not None
    return SpeedUp(ratio, decode or ratio, sum(theirs) / sum(s.seconds for s, _ in matched))


def usual_mode_of(samples: Iterable[Sample], found: Modes) -> str | None:
    """The mode in which most of these samples ran."""
    counts = Counter(mode for s in samples if (mode := found.of(s)) is not None)
    return max(counts, key=lambda mode: counts[mode], default=None)


def usual_mode(rows: Sequence[Row]) -> str | None:
    """The mode with the most samples: where one figure must stand for a method, it is this mode's."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update({mode: spread.n for mode, spread in row.rate.items()})
    return max(counts, key=lambda mode: counts[mode], default=None)


def _of(group: Sequence[Sample], side: str, method: str) -> list[Sample]:
    return [s for s in group if s.side == side and s.method == method]


def _by_mode(samples: Sequence[Sample], found: Modes, value: Callable[[Sample], float]) -> dict[str, Spread]:
    spreads = {m: Spread.of([value(s) for s in samples if found.of(s) == m]) for m in found.names}
    return {mode: spread for mode, spread in spreads.items() if spread is not None}
