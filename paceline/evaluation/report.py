"""A benchmark's result: written as JSON, read again, shown as a table or Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paceline.errors import BadRequest
from paceline.evaluation import own, peers
from paceline.evaluation.provenance import provenance
from paceline.evaluation.samples import Sample
from paceline.evaluation.summary import (
    ALL,
    OWN_PLAIN,
    PEER_BEST,
    PEER_PLAIN,
    Modes,
    Row,
    Spread,
    summarise,
    usual_mode,
)

FORMAT = 1


@dataclass
class SizeInfo:
    """One measured size of the model.

    Attributes:
        label: for people; says when the model is inflated.
        parameters, weight_bytes: read by one forward pass.
        path: how Paceline computes the forward pass.
        own_bytes, peer_bytes: memory that loading took, for each side.
    """

    label: str
    inflated: bool
    parameters: int
    weight_bytes: int
    dtype: str
    path: str
    own_bytes: int
    peer_bytes: int | None


@dataclass
class Report:
    """Everything a benchmark found.

    Attributes:
        settings: what was asked.
        sizes, samples: what was measured.
        identical: per size, workload and method: on how many prompts the tokens equal plain decoding's.
        skipped: what was left out, and why.
        complete: whether the time budget sufficed.
    """

    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=provenance)
    sizes: dict[str, SizeInfo] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    identical: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    complete: bool = True

    @property
    def modes(self) -> Modes:
        """Bandwidth modes seen."""
        return Modes(self.samples)

    def rows(self) -> list[Row]:
        """The summary, with the equality checks filled in."""
        batch = self.settings.get("batch", 1)
        rows = summarise(self.samples, {n: i.weight_bytes / batch for n, i in self.sizes.items()}, self.modes)
        for row in rows:
            row.identical = _identical(self.identical.get(row.size, {}), row.workload, f"{row.side} {row.method}")
        return rows

    def write(self, path: Path) -> None:
        """Store as JSON: settings, provenance, raw samples and the summary."""
        record = {"format": FORMAT, **asdict(self), "modes": self.modes.bandwidths}
        record["summary"] = [asdict(row) for row in self.rows()]
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """The report in a file. Raises `BadRequest` when it is none."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise BadRequest(f"{path}: a report of format {record['format']}, this version reads {FORMAT}")
            return cls(
                record["settings"],
                record["provenance"],
                {name: SizeInfo(**info) for name, info in record["sizes"].items()},
                [Sample(**sample) for sample in record["samples"]],
                record["identical"],
                record["skipped"],
                record["complete"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadRequest):
                raise
            raise BadRequest(f"{path} is no benchmark report: {error!r}") from error


def _identical(checks: dict[str, Any], workload: str, method: str) -> dict[str, Any]:
    """The checks of one row; of all workloads together when it is their row."""
    found = [c[method] for name, c in checks.items() if workload in (name, ALL) and method in c]
    merged: dict[str, Any] = {}
    for reference in found[0] if found else ():
        parts = [c[reference] for c in found]
        gaps = [p["largest_gap"] for p in parts if p["largest_gap"] is not None]
        merged[reference] = {
            "equal": sum(p["equal"] for p in parts),
            "of": sum(p["of"] for p in parts),
            "first": next((p["first"] for p in parts if p["first"]), None),
            "largest_gap": max(gaps, default=None),
        }
    return merged


#: Heads of the columns, in full and for a terminal.
HEADER = (
    "method",
    "tokens/s",
    "decode",
    f"x {OWN_PLAIN}",
    f"x {PEER_PLAIN}",
    f"x {PEER_BEST}",
    "tokens a pass",
    "other",
    "same text",
)
SHORT = ("method", "tokens/s", "decode", "x own", "x hf", "x best", "pass", "other", "same")
NOTES = (
    "loops: share of the text that repeats itself (8-grams seen before in it), where drafts are easily right.",
    "tokens/s: median of end-to-end speed, quartiles in brackets; decode: without the time to the first token.",
    "x: median of the ratios of runs of the same prompt at the same memory bandwidth, against Paceline's plain "
    "decoding, transformers' plain decoding, and the best of transformers' modes.",
    "pass: tokens a forward pass, bonus token included; other: share of decoding outside the target's passes.",
    "same: whether all tokens equal Paceline's and transformers' plain decoding; if not, on how many prompts each.",
)


@dataclass
class Section:
    """The rows of one size and workload, as text.

    Attributes:
        mode: whose speeds are given, with its `bound` on decoding without drafts.
        best_peer: the best of transformers' modes.
        loops: share of the output that repeats itself.
        lines: cells as in `HEADER`.
    """

    size: str
    workload: str
    mode: str
    bound: float
    best_peer: str | None
    loops: float
    lines: list[tuple[str, ...]]


def sections(report: Report) -> Iterator[Section]:
    """The summary for people. Speeds are those of the mode that was met most often."""
    rows = report.rows()
    for size in dict.fromkeys(row.size for row in rows):
        for workload in dict.fromkeys(row.workload for row in rows if row.size == size):
            group = [row for row in rows if (row.size, row.workload) == (size, workload)]
            mode = usual_mode(group)
            if mode is not None:
                lines = [_line(row, mode) for row in group]
                first = group[0]
                yield Section(size, workload, mode, first.bound[mode], first.best_peer, first.repetition, lines)


def _line(row: Row, mode: str) -> tuple[str, ...]:
    rate, decode = row.rate.get(mode), row.decode_rate.get(mode)
    return (
        f"{row.side} {row.method}",
        _spread(rate),
        number(decode.median) if decode else "-",
        *(_times(row, name) for name in (OWN_PLAIN, PEER_PLAIN, PEER_BEST)),
        f"{row.tokens_per_pass:.2f}" if row.tokens_per_pass is not None else "",
        f"{row.overhead:.0%}" if row.overhead is not None else "",
        same_text(row),
    )


def _spread(spread: Spread | None) -> str:
    return f"{number(spread.median)} [{number(spread.low)}-{number(spread.high)}]" if spread else "-"


def number(value: float) -> str:
    """Three figures or so."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _times(row: Row, name: str) -> str:
    found = row.speed_up.get(name)
    return f"{found.ratio.median:.2f}" if found else "-"


def same_text(row: Row) -> str:
    """Equality with the two plain decodings: "yes", or on how many prompts with each, such as "24/24 23/24"."""
    checks = [row.identical[name] for name in (OWN_PLAIN, PEER_PLAIN) if name in row.identical]
    if checks and all(c["equal"] == c["of"] for c in checks):
        return "yes"
    return " ".join(f"{c['equal']}/{c['of']}" for c in checks)


def differences(report: Report) -> Iterator[str]:
    """A sentence for each method whose tokens differ from its own side's plain decoding, and for the two sides."""
    for row in report.rows():
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
            f"{row.size} {row.workload}, {row.side} {row.method}: {check['of'] - check['equal']} of {check['of']} "
            f"texts differ from {reference}, the first ({first['prompt']}) at token {first['position']}{gap}"
        )


def machine(report: Report) -> str:
    """Where it was measured, in a line."""
    p, s = report.provenance, report.settings
    dtypes = ", ".join(dict.fromkeys(info.dtype for info in report.sizes.values()))
    place = p["gpu"] if s.get("device") == "cuda" or (p["gpu"] and not s.get("device")) else p["cpu"]
    return (
        f"{place}, {p['threads']} threads, {dtypes}, batch {s['batch']}, {s['max_new_tokens']} new tokens, "
        f"temperature {s['temperature']:g}; Paceline {p['paceline']}, torch {p['torch']}, "
        f"transformers {p['transformers']}"
    )


def mode_note(report: Report) -> str:
    """Which bandwidths there were."""
    named = ", ".join(f"{name} {value / 1e9:.0f} GB/s" for name, value in report.modes.bandwidths.items())
    found = report.modes
    odd = sum(found.of(s) is None for s in report.samples)
    if found.busy:
        disturbed = sum(not s.stable for s in report.samples)
        return (
            f"THE MACHINE WAS BUSY: {disturbed} of {len(report.samples)} runs were disturbed and count all the same; "
            f"do not trust these speeds; memory bandwidth: {named}"
        )
    return f"memory bandwidth: {named}; {odd} of {len(report.samples)} runs left out as disturbed"


def markdown(report: Report) -> str:
    """The report as a Markdown page."""
    parts = ["# Benchmark", "", machine(report) + ".", "", mode_note(report) + ".", ""]
    for section in sections(report):
        info = report.sizes[section.size]
        parts += [f"## {info.label}: {section.workload}", "", _caption(report, section), ""]
        parts += ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
        parts += ["| " + " | ".join(line) + " |" for line in section.lines]
        parts.append("")
    parts += [f"- {note}" for note in NOTES]
    parts += [f"- {sentence}." for sentence in differences(report)]
    parts += [f"- Left out: {name}: {reason}." for name, reason in report.skipped.items()]
    return "\n".join(parts) + "\n"


def _caption(report: Report, section: Section) -> str:
    info = report.sizes[section.size]
    label = "; inflated: costs what a model of that size costs, says what the small one says" if info.inflated else ""
    return (
        f"{info.parameters / 1e6:.0f} million parameters, {info.weight_bytes / 1e6:.0f} MB in {info.dtype}{label}. "
        f"Speeds at {report.modes.bandwidths[section.mode] / 1e9:.0f} GB/s, where one pass a token would give at most "
        f"{section.bound:.0f} tokens/s. Transformers' best: {section.best_peer or '-'}. "
        f"{section.loops:.0%} of the text repeats itself."
    )
