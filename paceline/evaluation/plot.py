"""A benchmark as a picture: tokens/s by workload, transformers in grey, Paceline in colour."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from paceline.errors import BadRequest
from paceline.evaluation import own
from paceline.evaluation.report import Report
from paceline.evaluation.sentences import machine
from paceline.evaluation.summary import ALL, PEER_BEST, PEER_PLAIN, Row, usual_mode
from paceline.evaluation.tables import Board, boards, choice, number

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

#: Paceline's drafters, plain decoding lightest; transformers' modes.
OWN_COLOURS = ("#a9d6cf", "#2a9d8f", "#1f7a8c", "#3a5ba0", "#6a4c93", "#c05780", "#e07a5f", "#e9a23b")
PEER_COLOURS = ("#d4d4d4", "#b8b8b8", "#9c9c9c")
INK, FAINT = "#222222", "#8a8a8a"
BAR, GAP, WIDTH = 0.24, 0.32, 7.2
#: A bound beyond this many times the longest bar is named at the edge instead of drawn.
FAR = 2.0
#: Bars of a panel; where there would be more, only all workloads together are shown.
MOST = 40
SUFFIXES = (".png", ".svg", ".pdf")


def draw(report: Report, path: Path) -> None:
    """Write the picture; its format follows the file's suffix. Raises `BadRequest` for an unknown one."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadRequest(f"plot: {path.name!r} must end in {', '.join(SUFFIXES)}")
    panels = [panel for board in boards(report) for t in board.temperatures if (panel := _chosen(board, t))]
    if not panels:
        raise BadRequest("plot: there are no samples to draw")
    height = max(_height(panel) for panel in panels)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH * len(panels), height + 1.9), squeeze=False, layout="constrained"
    )
    with plt.rc_context({"font.family": "DejaVu Sans"}):
        for axis, panel in zip(axes[0], panels, strict=True):
            _panel(axis, panel, report)
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
        figure.text(0.01, -0.005, _footnote(report), ha="left", va="top", fontsize=7.5, color=FAINT)
    figure.savefig(path, dpi=160, bbox_inches="tight", pad_inches=0.25, facecolor="white")
    plt.close(figure)


def _chosen(board: Board, temperature: float) -> list[Row]:
    """The rows of one size and temperature: workload by workload, or only all together when there are many methods."""
    workloads = list(dict.fromkeys([*board.workloads, board.total]))
    if len(workloads) * len(board.methods) > MOST:
        workloads = [board.total]
    rows = [board.row(temperature, workload, method) for workload in workloads for method in board.methods]
    return [row for row in rows if row is not None]


def _height(panel: list[Row]) -> float:
    return BAR * len(panel) + GAP * len({row.workload for row in panel})


def _panel(axis: Axes, rows: list[Row], report: Report) -> None:
    """One size: groups of bars from the top, a group a workload."""
    mode = usual_mode(rows)
    drawn = [row for row in rows if mode in row.rate]
    if mode is None or not drawn:
        axis.set_axis_off()
        return
    longest = max(row.rate[mode].high for row in drawn)
    colours = _colours(rows)
    y, ticks = 0.0, []
    for workload in dict.fromkeys(row.workload for row in drawn):
        group = [row for row in drawn if row.workload == workload]
        axis.text(0, y + GAP / 2, _heading(workload), fontsize=9.5, fontweight="bold", color=INK, va="center")
        loops = f"{group[0].repetition:.0%} of the text repeats itself"
        axis.text(longest * 1.28, y + GAP / 2, loops, fontsize=7.5, color=FAINT, va="center", ha="right")
        y += GAP
        for row in group:
            _bar(axis, row, mode, y, colours[row.side, row.method], longest)
            ticks.append((y, _label(row)))
            y += BAR
    axis.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8, color=INK)
    axis.set_ylim(y, -GAP / 4)
    axis.set_xlim(0, longest * 1.28)
    _bound(axis, drawn[0].bound[mode], longest, report.modes.bandwidths[mode])
    _decorate(axis, report, drawn[0])


def _bar(axis: Axes, row: Row, mode: str, y: float, colour: str, longest: float) -> None:
    spread = row.rate[mode]
    axis.barh(y, spread.median, height=BAR * 0.82, color=colour, zorder=2)
    if spread.n > 1:
        axis.plot([spread.low, spread.high], [y, y], color=INK, linewidth=0.9, zorder=3)
        for end in (spread.low, spread.high):
            axis.plot([end, end], [y - BAR * 0.18, y + BAR * 0.18], color=INK, linewidth=0.9, zorder=3)
    text = number(spread.median)
    against = row.speed_up.get(PEER_BEST)
    if row.side == own.SIDE and against is not None:
        text += f"   {against.ratio.median:.2f}×"
    at = max(spread.median, spread.high if spread.n > 1 else 0) + 0.012 * longest
    bold = "bold" if row.side == own.SIDE else "normal"
    axis.text(at, y, text, va="center", fontsize=7.5, color=INK if bold == "bold" else FAINT, fontweight=bold)


def _bound(axis: Axes, bound: float, longest: float, bandwidth: float) -> None:
    text = f"all weights once a token at {bandwidth / 1e9:.0f} GB/s: {number(bound)} tokens/s"
    if bound <= FAR * longest:
        axis.axvline(bound, color="#d1495b", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axis.set_xlim(0, max(longest * 1.28, bound * 1.06))
    else:
        text += " (beyond the right edge)"
    axis.text(1.0, 1.005, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=7.5, color="#d1495b")


def _decorate(axis: Axes, report: Report, row: Row) -> None:
    info = report.sizes[row.size]
    name = f"{info.label}: {info.parameters / 1e6:.0f} M parameters, {info.weight_bytes / 1e6:.0f} MB {info.dtype}"
    if row.temperature or len(report.settings["temperatures"]) > 1:
        name += f", {choice(row.temperature)}"
    axis.set_title(name, loc="left", fontsize=10.5, color=INK, pad=18)
    axis.set_xlabel("tokens/s, end to end", fontsize=8.5, color=FAINT)
    axis.tick_params(axis="x", labelsize=8, colors=FAINT, length=0)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#ececec", zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _colours(rows: list[Row]) -> dict[tuple[str, str], str]:
    """A colour for each method; one for all of Paceline's where there are more than colours."""
    found = list(dict.fromkeys((row.side, row.method) for row in rows))
    mine = sorted((m for m in found if m[0] == own.SIDE), key=lambda m: m[1] != own.PLAIN)
    colours = OWN_COLOURS if len(mine) <= len(OWN_COLOURS) else (OWN_COLOURS[0], *OWN_COLOURS[1:2] * len(mine))
    theirs = [m for m in found if m[0] != own.SIDE]
    return dict(zip(mine, colours, strict=False)) | dict(zip(theirs, PEER_COLOURS, strict=False))


def _label(row: Row) -> str:
    name = "plain" if row.method == own.PLAIN else row.method
    return f"Paceline {name}" if row.side == own.SIDE else f"transformers {name}"


def _heading(workload: str) -> str:
    return "all workloads" if workload == ALL else workload


def _title(report: Report) -> str:
    return f"{report.settings['model']}: tokens a second, same weights, prompts and number of tokens"


def _footnote(report: Report) -> str:
    compared = any(PEER_PLAIN in row.speed_up for row in report.rows())
    lines = ["Bars: median over prompts; whiskers: quartiles."]
    if compared:
        lines[0] += " ×: against transformers' best mode, runs of the same prompt at the same memory bandwidth."
    if any(info.inflated for info in report.sizes.values()):
        lines.append(
            "Inflated: the small model inside a larger one of equal function; it costs what the large one costs."
        )
    return "\n".join([*lines, machine(report)])
