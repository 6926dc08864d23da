"""A report's pictures: speed-up, tokens a pass, acceptance by depth, time by phase; one set for each size."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from paceline.evaluation import own
from paceline.evaluation.measures import PHASES
from paceline.evaluation.summary import OWN_PLAIN, Row
from paceline.evaluation.tables import Board, Who, choice, label, times

#: Colours that a page may exchange for its own (see `svg`), and how they look on paper.
INK, FAINT, GRID, OWN, PEER = "#1f2a37", "#76828f", "#e6e9ed", "#b9d8d2", "#d9dcdf"
THEMED = {INK: "--ink", FAINT: "--faint", GRID: "--grid", OWN: "--own", PEER: "--peer"}
#: Workloads; phases of `PHASES`; greedy and sampled.
DOTS = ("#16786c", "#c9822b", "#4668a8", "#a3497b", "#6b7f2a", "#7d5ba6", "#8a6d3b")
PARTS = ("#93a8bf", "#d99a4e", "#2f8479", "#8f6aa8", "#b9a03c", "#a9b0b6")
LINES = ("#16786c", "#c9822b", "#4668a8", "#a3497b")
#: Inches: a line of a chart, what is above and below all lines, a legend, the whole width; and a small panel.
LANE, FRAME, LEGEND, WIDTH, SMALL = 0.235, 0.75, 0.3, 9.6, (1.9, 1.45)
DEPTHS, ACROSS = 12, 5


@dataclass(frozen=True)
class Picture:
    """One figure of one size.

    Attributes:
        name: for files; title, note: for people.
        draw: makes the figure.
    """

    name: str
    title: str
    note: str
    draw: Callable[[], Figure]


def pictures(board: Board) -> list[Picture]:
    """The figures of one size; those that would be empty are left out."""
    found = [
        Picture(
            "speed-up",
            "Speed-up",
            "times Paceline's plain decoding, end to end; bars: all workloads, dots: each of them; median over prompts",
            lambda: _lanes(board, board.methods, lambda row: times(row, OWN_PLAIN), "{:.2f}×".format),
        ),
    ]
    drafters = [m for m in board.methods if m[0] == own.SIDE and m[1] != own.PLAIN]
    if drafters:
        found += [
            Picture(
                "tokens-per-pass",
                "Tokens a forward pass",
                "bonus token included; bars: all workloads, dots: each of them",
                lambda: _lanes(board, drafters, lambda row: row.tokens_per_pass, "{:.2f}".format),
            ),
            Picture(
                "acceptance",
                "Acceptance by depth",
                f"share of the drafts that reach a depth whose token there was kept, to depth {DEPTHS}",
                lambda: _acceptance(board, drafters),
            ),
        ]
    mine = [m for m in board.methods if m[0] == own.SIDE]
    note = "milliseconds a token, all workloads"
    return [*found, *([Picture("phases", "Time by phase", note, lambda: _phases(board, mine))] if mine else [])]


def png(picture: Picture, path: Path, subject: str) -> None:
    """Write a picture on white, with its title and what it is of."""
    figure = picture.draw()
    figure.suptitle(f"{picture.title} · {subject}", x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)
    below = -LEGEND / figure.get_figheight()
    figure.text(0.012, below, picture.note, ha="left", va="top", fontsize=7.5, color=FAINT)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.2, facecolor="white")
    plt.close(figure)


def svg(picture: Picture) -> str:
    """The picture as an `<svg>` element whose neutral colours follow the page's variables."""
    figure, out = picture.draw(), io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        figure.savefig(out, format="svg", bbox_inches="tight", pad_inches=0.05, transparent=True)
    plt.close(figure)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 style="width:\2pt"', text, count=1)
    for colour, variable in THEMED.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"font: ([\d. a-z]*?)([\d.]+)px [^;\"]*", r"font: \1\2px var(--font)", text)


def _panels(board: Board, lanes: int) -> tuple[Figure, list[Axes]]:
    """A chart for each temperature, side by side, with a common axis of methods."""
    width = WIDTH if len(board.temperatures) > 1 else 0.62 * WIDTH
    figure, axes = plt.subplots(
        1,
        len(board.temperatures),
        figsize=(width, lanes * LANE + FRAME),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis, temperature in zip(axes[0], board.temperatures, strict=True):
        axis.set_title(choice(temperature), loc="left", fontsize=9, color=INK, fontweight="bold")
        _plain(axis)
        axis.grid(axis="x", color=GRID, linewidth=0.8)
    return figure, list(axes[0])


def _plain(axis: Axes) -> None:
    axis.tick_params(labelsize=8, colors=FAINT, length=0)
    axis.set_axisbelow(True)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _names(axis: Axes, methods: Sequence[Who]) -> None:
    """The methods from top to bottom."""
    axis.set_yticks(range(len(methods)), [_short(label(m)) for m in methods])
    axis.set_ylim(len(methods) - 0.4, -0.6)
    for text, (side, _) in zip(axis.get_yticklabels(), methods, strict=True):
        text.set_color(INK if side == own.SIDE else FAINT)


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _lanes(
    board: Board, methods: Sequence[Who], value: Callable[[Row], float | None], text: Callable[[float], str]
) -> Figure:
    """A bar a method for everything, dots for the workloads."""
    figure, axes = _panels(board, len(methods))
    several = len(board.workloads) > 1
    for axis, temperature in zip(axes, board.temperatures, strict=True):
        for lane, method in enumerate(methods):
            points = [
                (value(row), colour)
                for workload, colour in zip(board.workloads, _cycle(DOTS), strict=False)
                if several and (row := board.row(temperature, workload, method)) is not None
            ]
            row = board.row(temperature, board.total, method)
            middle = value(row) if row is not None else None
            if row is None or middle is None:
                axis.text(0, lane, " –", va="center", fontsize=7.5, color=FAINT)
                continue
            axis.barh(lane, middle, height=0.62, color=OWN if method[0] == own.SIDE else PEER, zorder=2)
            for x, colour in points:
                if x is not None:
                    axis.plot(x, lane, "o", markersize=3.6, color=colour, markeredgewidth=0, zorder=3)
            right = max([middle, *(x for x, _ in points if x is not None)])
            axis.annotate(
                text(middle), (right, lane), (5, 0), textcoords="offset points", va="center", fontsize=7.5, color=INK
            )
        axis.axvline(1, color=FAINT, linewidth=0.9, zorder=1)
        axis.margins(x=0.14)
    _names(axes[0], methods)
    axes[0].set_xlim(left=0)
    if several:
        _legend(figure, [(w, c) for w, c in zip(board.workloads, _cycle(DOTS), strict=False)], dots=True)
    return figure


def _phases(board: Board, methods: Sequence[Who]) -> Figure:
    """Milliseconds a token, a part a phase."""
    figure, axes = _panels(board, len(methods))
    for axis, temperature in zip(axes, board.temperatures, strict=True):
        for lane, method in enumerate(methods):
            row = board.row(temperature, board.total, method)
            left = 0.0
            for phase, colour in zip(PHASES, PARTS, strict=True) if row is not None and row.phases else ():
                width = 1000 * row.phases[phase]  # type: ignore[index, union-attr]
                axis.barh(lane, width, left=left, height=0.62, color=colour, zorder=2)
                left += width
            axis.annotate(
                f"{left:.1f}" if left else "–",
                (left, lane),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=INK if left else FAINT,
            )
        axis.margins(x=0.12)
    _names(axes[0], methods)
    axes[0].set_xlim(left=0)
    _legend(figure, list(zip(PHASES, PARTS, strict=True)), dots=False)
    return figure


def _acceptance(board: Board, methods: Sequence[Who]) -> Figure:
    """A small panel a method, a line a temperature."""
    shown = [m for m in methods if any(_depths(board, t, m) for t in board.temperatures)] or list(methods[:1])
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(SMALL[0] * across + 0.5, SMALL[1] * down + 0.45),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, method in zip(axes.flat, shown, strict=False):
        for temperature, colour in zip(board.temperatures, _cycle(LINES), strict=False):
            shares = _depths(board, temperature, method)
            axis.plot(
                range(1, len(shares) + 1), shares, "-o", color=colour, linewidth=1.4, markersize=2.6, markeredgewidth=0
            )
        axis.set_title(_short(label(method), 26), loc="left", fontsize=8, color=INK)
        axis.set_xticks([1, 4, 8, DEPTHS])
        axis.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
        axis.set_ylim(-0.04, 1.04)
        axis.set_xlim(0.4, DEPTHS + 0.6)
        _plain(axis)
        axis.tick_params(labelsize=7)
        axis.grid(color=GRID, linewidth=0.8)
    _below(axes, len(shown))
    _legend(figure, [(choice(t), c) for t, c in zip(board.temperatures, _cycle(LINES), strict=False)], dots=True)
    return figure


def _below(axes: object, count: int) -> None:
    """Depths under the lowest panel of each column, also where the last row is not full."""
    down, across = axes.shape  # type: ignore[attr-defined]
    for column in range(across):
        lowest = max((row for row in range(down) if row * across + column < count), default=0)
        axes[lowest, column].tick_params(labelbottom=True)  # type: ignore[index]


def _depths(board: Board, temperature: float, method: Who) -> list[float]:
    row = board.row(temperature, board.total, method)
    return (row.acceptance or [])[:DEPTHS] if row is not None else []


def _legend(figure: Figure, entries: Sequence[tuple[str, str]], dots: bool) -> None:
    marks: list[Line2D | Patch] = [
        Line2D([], [], linestyle="", marker="o", markersize=4.5, color=colour, markeredgewidth=0)
        if dots
        else Patch(color=colour)
        for _, colour in entries
    ]
    figure.legend(
        marks,
        [name for name, _ in entries],
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=len(entries),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=0.9,
        handletextpad=0.5,
        columnspacing=1.4,
    )


def _cycle(colours: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colours
