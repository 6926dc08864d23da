"""A benchmark's report as text: columns, tables, what must be said about them, and the Markdown page."""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
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
NOTES = (
    "tokens/s: median of end-to-end speed; decode: the same without the prompt, that is without the time to the first "
    "token (first).",
    "×: median of the ratios of runs of the same prompt at the same memory bandwidth, against Paceline's plain "
    "decoding, transformers' (HF) plain decoding, and the fastest of its modes, first end to end, then decoding alone.",
    "per pass: tokens a forward pass, bonus token included; kept: share of drafts whose first token was kept; other: "
    "share of decoding outside the target's passes.",
    "memory: the model, what the method keeps for itself, and the most that a run needed beside.",
    "loops: share of the text that repeats itself (8-grams seen before in it), where drafts are easily right.",
    "same text: greedy, whether all tokens equal Paceline's and transformers' plain decoding, else on how many prompts "
    "each; sampled, whether they equal Paceline's plain decoding with the same seed. Transformers draws its samples "
    "from another source, so these are other texts.",
)
#: What a terminal's narrower tables need.
SHORT_NOTES = (
    "tokens/s: median of end-to-end speed; decode: the same without the prompt.",
    "×: how many times as fast, the median over runs of one prompt at one memory bandwidth: as Paceline's plain "
    "decoding, as transformers' (HF) plain decoding, as the best of its modes.",
    "pass: tokens a forward pass, bonus token included; other: share of decoding outside the target's passes; loops: "
    "share of the text that repeats itself, where drafts are easily right.",
    "same: whether all texts equal plain decoding's, else how many. --markdown and --html show and explain more.",
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


def differences(report: Report, rows: Sequence[Row] | None = None) -> Iterator[str]:
    """A sentence for each method whose tokens differ from its own side's plain decoding, and for the two sides."""
    for row in report.rows() if rows is None else rows:
        if row.workload == ALL:
            continue
        reference = PEER_PLAIN if row.side == peers.SIDE or row.method == own.PLAIN else OWN_PLAIN
        check = row.identical.get(reference)
        if check is None or check["first"] is None:
            continue
        first, gap = check["first"], ""
        if first["gap"] is not None:
            gap = f"; the two best logits are {first['gap']:.3g} apart there, and {check['largest_gap']:.3g} at most"
        yield (
            f"{row.size} {row.workload}, {choice(row.temperature)}, {row.side} {row.method}: "
            f"{check['of'] - check['equal']} of {check['of']} texts differ from {reference}, the first "
            f"({first['prompt']}) at token {first['position']}{gap}"
        )


def machine(report: Report) -> str:
    """Where it was measured, in a line."""
    p, s = report.provenance, report.settings
    dtypes = ", ".join(dict.fromkeys(info.dtype for info in report.sizes.values()))
    place = p["gpu"] if s.get("device") == "cuda" or (p["gpu"] and not s.get("device")) else p["cpu"]
    return (
        f"{place}, {p['threads']} of {p['cores']} cores in use, {p['memory_bytes'] / 2**30:.0f} GiB; {dtypes}, batch "
        f"{s['batch']}, {s['max_new_tokens']} new tokens, {', '.join(choice(t) for t in s['temperatures'])}; "
        f"Paceline {p['paceline']}{' ' + p['commit'] if p['commit'] else ''}, torch {p['torch']}, "
        f"transformers {p['transformers']}"
    )


def command(report: Report) -> str:
    """What was typed."""
    return shlex.join(["paceline", *report.provenance["argv"]])


def date(report: Report) -> str:
    """When it began, and when it was gone on with."""
    moments = [report.provenance["date"], *(again["date"] for again in report.provenance.get("resumed", []))]
    days = [f"{datetime.datetime.fromisoformat(moment):%d %B %Y, %H:%M} UTC" for moment in moments]
    return days[0] + (f", resumed {'; '.join(days[1:])}" if len(days) > 1 else "")


def mode_note(report: Report) -> str:
    """Which bandwidths there were."""
    found = report.modes
    if not report.samples:
        return "nothing was measured"
    named = ", ".join(f"{name} {value / 1e9:.0f} GB/s" for name, value in found.bandwidths.items())
    if found.busy:
        disturbed = sum(not s.stable for s in report.samples)
        return (
            f"THE MACHINE WAS BUSY: {disturbed} of {len(report.samples)} runs were disturbed and count all the same; "
            f"do not trust these speeds; memory bandwidth: {named}"
        )
    odd = sum(found.of(s) is None for s in report.samples)
    return f"memory bandwidth: {named}; {odd} of {len(report.samples)} runs left out as disturbed"


def missing(report: Report) -> Iterator[str]:
    """Where the budget ended before everything was measured: a sentence for each size and temperature."""
    runs = Counter((s.size, s.temperature, s.workload, (s.side, s.method)) for s in report.samples)
    for size, planned in report.planned.items():
        methods = dict.fromkeys((s.side, s.method) for s in report.samples if s.size == size)
        for temperature in report.settings["temperatures"]:
            asked = [m for m in methods if f"{m[0]} {m[1]} ({size}, temperature {temperature:g})" not in report.skipped]
            parts = []
            for workload, wanted in planned.items():
                done = [runs[size, temperature, workload, m] for m in asked] or [0]
                if min(done) < wanted:
                    count = f"{min(done)}" if min(done) == max(done) else f"{min(done)} to {max(done)}"
                    parts.append(f"{workload} {count} of {wanted}")
            if parts:
                yield f"incomplete: {size}, {choice(temperature)}: {', '.join(parts)} runs of each method"
    for size in report.settings["sizes"]:
        if size not in report.planned:
            yield f"incomplete: {size} was not measured"


def caption(section: Section) -> str:
    """What is above a table."""
    report, best = section.board.report, section.best_peer or "-"
    return (
        f"Speeds at {report.modes.bandwidths[section.mode] / 1e9:.0f} GB/s, where one pass a token would give at most "
        f"{section.bound:.0f} tokens/s. Transformers' best: {best}. {section.loops:.0%} of the text repeats itself."
    )


def about(info: SizeInfo) -> str:
    """A size of the model, in a sentence."""
    inflated = (
        "; inflated: costs what a model of that size costs, says what the small one says" if info.inflated else ""
    )
    return (
        f"{info.parameters / 1e6:.0f} million parameters, {info.weight_bytes / 1e6:.0f} MB in {info.dtype}{inflated}."
    )


def left_out(report: Report) -> list[str]:
    """What was not measured, and why."""
    return [f"left out: {name}: {' '.join(reason.split())}" for name, reason in report.skipped.items()]


def markdown(report: Report, pictures: dict[str, list[tuple[str, str]]] | None = None) -> str:
    """The report as a Markdown page.

    Args:
        report: what was measured.
        pictures: for each size, titles and paths of its pictures.
    """
    arranged = boards(report)
    parts = [f"# Benchmark of {report.settings['model']}", "", f"{machine(report)}.", "", f"{date(report)}.", ""]
    parts += ["```sh", command(report), "```", "", f"{mode_note(report)}."]
    parts += [f"\n**{sentence}.**" for sentence in missing(report)]
    for board in arranged:
        parts += ["", f"## {board.info.label}", "", about(board.info)]
        parts += [f"\n![{title}]({path})" for title, path in (pictures or {}).get(board.size, [])]
        for section in sections(report, [board]):
            parts += _markdown_section(section)
    parts += ["", "## Notes", "", *(f"- {note}" for note in NOTES)]
    parts += [f"- {sentence}." for sentence in differences(report, [r for b in arranged for r in b.rows])]
    parts += [f"- {sentence}." for sentence in left_out(report)]
    return "\n".join(parts) + "\n"


def _markdown_section(section: Section) -> list[str]:
    """A table; those of single workloads are folded away where one stands for all."""
    title = f"{section.board.info.label}: {title_of(section)}"
    heads = ["method", *(column.head for column in COLUMNS), "same text"]
    table = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(COLUMNS) + " --- |"]
    for row in section.rows:
        texts = [text for text, _ in section.cells(row)]
        cells = [f"{row.side} {row.method}", *texts, same_text(row, section.board.report)]
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if section.workload == section.board.total:
        return ["", f"### {title}", "", caption(section), "", *table]
    return ["", f"<details><summary>{title}</summary>", "", caption(section), "", *table, "", "</details>"]


def title_of(section: Section) -> str:
    """Workload and temperature."""
    workload = "all workloads" if section.workload == ALL else section.workload
    return f"{workload}, {choice(section.temperature)}"
