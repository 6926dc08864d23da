"""A benchmark's report as tables: its rows arranged for people, and the columns that say what a row says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from paceline.evaluation import own, peers
from paceline.evaluation.report import Report, SizeInfo
from paceline.evaluation.summary import ALL, OWN_PLAIN, PEER_BEST, PEER_PLAIN, Row, SpeedUp, usual_mode

Who = tuple[str, str]


@dataclass
class Board:
    """One size's rows, arranged for people.

    Attributes:
        report, size: what they are of.
        rows: all of them.
    """

    report: Report
    size: str
    rows: list[Row]

    @cached_property
    def info(self) -> SizeInfo:
        """What was measured."""
        return self.report.sizes[self.size]

    @cached_property
    def temperatures(self) -> list[float]:
        """Greedy first."""
        return sorted({row.temperature for row in self.rows})

    @cached_property
    def workloads(self) -> list[str]:
        """In the order in which they were given, without the row of all together."""
        return [w for w in dict.fromkeys(row.workload for row in self.rows) if w != ALL]

    @property
    def total(self) -> str:
        """The workload whose rows stand for everything."""
        return ALL if len(self.workloads) > 1 else self.workloads[0]

    @cached_property
    def _at(self) -> dict[tuple[float, str, Who], Row]:
        return {(row.temperature, row.workload, who(row)): row for row in self.rows}

    def row(self, temperature: float, workload: str, method: Who) -> Row | None:
        """One method's row."""
        return self._at.get((temperature, workload, method))

    @cached_property
    def methods(self) -> list[Who]:
        """Paceline's, then transformers'; the fastest first."""
        return sorted(dict.fromkeys(who(row) for row in self.rows), key=lambda m: (m[0] == peers.SIDE, -self._merit(m)))

    def _merit(self, method: Who) -> float:
        """Speed-up at the lowest temperature that the method was measured at."""
        rows = (self.row(t, self.total, method) for t in self.temperatures)
        found = (times(row, OWN_PLAIN) or times(row, PEER_PLAIN) for row in rows if row is not None)
        return next((value for value in found if value is not None), 0.0)


def boards(report: Report) -> list[Board]:
    """The report by size."""
    rows = report.rows()
    return [
        Board(report, size, [row for row in rows if row.size == size]) for size in dict.fromkeys(r.size for r in rows)
    ]


def who(row: Row) -> Who:
    """Side and method."""
    return row.side, row.method


def label(method: Who) -> str:
    """A method's name for tables and pictures."""
    side, name = method
    if side == own.SIDE:
        return "plain" if name == own.PLAIN else name
    return f"transformers {name}"


def choice(temperature: float) -> str:
    """How tokens are chosen."""
    return f"temperature {temperature:g}" if temperature else "greedy"


def times(row: Row | None, name: str, value: Callable[[SpeedUp], float] = lambda s: s.ratio.median) -> float | None:
    """How many times faster than the baseline `name`, by one of a `SpeedUp`'s figures."""
    found = row.speed_up.get(name) if row is not None else None
    return value(found) if found is not None else None


def number(value: float) -> str:
    """Three figures or so."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        head: its name; short: the same for a terminal, `None` where it has no room.
        value: what it is sorted by, given a row and the mode whose speeds are shown; `None` where there is nothing.
        text: how the value is written.
    """

    head: str
    short: str | None
    value: Callable[[Row, str], float | None]
    text: Callable[[float], str]


def _times(name: str, value: Callable[[SpeedUp], float] = lambda s: s.ratio.median) -> Callable[..., float | None]:
    return lambda row, mode: times(row, name, value)


def _median(name: str) -> Callable[[Row, str], float | None]:
    return lambda row, mode: found.median if (found := getattr(row, name).get(mode)) is not None else None


def _decode(speed_up: SpeedUp) -> float:
    return speed_up.decode.median


COLUMNS = (
    Column("tokens/s", "tokens/s", _median("rate"), number),
    Column("× plain", "× plain", _times(OWN_PLAIN), "{:.2f}".format),
    Column("× HF plain", "× HF", _times(PEER_PLAIN), "{:.2f}".format),
    Column("× HF best", "× best", _times(PEER_BEST), "{:.2f}".format),
    Column("decode", "decode", _median("decode_rate"), number),
    Column("decode × plain", None, _times(OWN_PLAIN, _decode), "{:.2f}".format),
    Column("decode × HF plain", None, _times(PEER_PLAIN, _decode), "{:.2f}".format),
    Column("decode × HF best", None, _times(PEER_BEST, _decode), "{:.2f}".format),
    Column("per pass", "pass", lambda row, mode: row.tokens_per_pass, "{:.2f}".format),
    Column("kept", None, lambda row, mode: kept(row), "{:.0%}".format),
    Column("other", "other", lambda row, mode: row.overhead, "{:.0%}".format),
    Column("first ms", None, _median("first"), lambda value: f"{1000 * value:.0f}"),
    Column("memory MB", None, lambda row, mode: row.memory, lambda value: f"{value / 1e6:.0f}"),
    Column("runs", None, lambda row, mode: row.samples - row.unstable, "{:.0f}".format),
)


def kept(row: Row) -> float | None:
    """Share of drafts whose first token was kept; `None` where nothing was drafted."""
    return row.acceptance[0] if row.acceptance else None


@dataclass
class Section:
    """The rows of one size, temperature and workload.

    Attributes:
        mode: whose speeds are given, with its `bound` on decoding without drafts.
        best_peer: the best of transformers' modes.
        loops: share of the output that repeats itself.
        rows: by method, in the board's order.
    """

    board: Board
    temperature: float
    workload: str
    mode: str
    bound: float
    best_peer: str | None
    loops: float
    rows: list[Row]

    def cells(self, row: Row) -> list[tuple[str, float | None]]:
        """What `COLUMNS` say of a row, as text and as the value to sort by."""
        found = [(column, column.value(row, self.mode)) for column in COLUMNS]
        return [("" if value is None else column.text(value), value) for column, value in found]


def sections(report: Report, arranged: Sequence[Board] | None = None) -> Iterator[Section]:
    """The summary for people. Speeds are those of the mode that was met most often."""
    for board in boards(report) if arranged is None else arranged:
        for temperature in board.temperatures:
            for workload in dict.fromkeys([board.total, *board.workloads]):
                rows = [row for m in board.methods if (row := board.row(temperature, workload, m)) is not None]
                mode = usual_mode(rows)
                if mode is not None:
                    plain = next((row for row in rows if row.method == own.PLAIN), rows[0])
                    bound, best = plain.bound[mode], plain.best_peer
                    yield Section(board, temperature, workload, mode, bound, best, plain.repetition, rows)


def same_text(row: Row, report: Report) -> str:
    """Equality with plain decoding: "yes", or on how many prompts with each, such as "24/24 23/24"."""
    checks = [row.identical[name] for name in (OWN_PLAIN, PEER_PLAIN) if name in row.identical]
    counts = " ".join(f"{c['equal']}/{c['of']}" for c in checks)
    if report.methods.get(row.method, {}).get("guarantee") == "lossy" and row.side == own.SIDE:
        return f"lossy {counts}".strip()
    return "yes" if checks and all(c["equal"] == c["of"] for c in checks) else counts
