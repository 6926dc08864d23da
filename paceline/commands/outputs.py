"""What a benchmark's report is written to: JSON, Markdown with pictures beside it, one HTML page, the terminal."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.evaluation.report import Report
    from paceline.evaluation.tables import Section

Markdown = Annotated[
    Path | None, typer.Option("--markdown", help="Write tables to this file, with its pictures as PNG beside it.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write one self-contained page to this file.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw tokens/s into this PNG, SVG or PDF.")]
#: Tables that a terminal shows; where there are more, only those of all workloads together.
TABLES = 6


def check(**files: Path | None) -> None:
    """Refuse files that cannot be written, before anything is measured for them. Raises `BadRequest`.

    Args:
        files: by the name of their option; that of a `plot` must end like a picture's.
    """
    for name, path in files.items():
        if path is None:
            continue
        folder = path.resolve().parent
        if not folder.is_dir():
            raise BadRequest(f"{name}: there is no folder {str(folder)!r}")
        if path.is_dir():
            raise BadRequest(f"{name}: {str(path)!r} is a folder; a file is needed")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise BadRequest(f"{name}: {str(path)!r} may not be written; choose another place")
        if name == "plot":
            _check_picture(path)


def _check_picture(path: Path) -> None:
    from paceline.evaluation.plot import SUFFIXES

    if path.suffix.lower() not in SUFFIXES:
        raise BadRequest(f"plot: {path.name!r} must end in {', '.join(SUFFIXES)}")


@dataclass
class Outputs:
    """Files that were asked for. Raises `BadRequest` for one that cannot be written."""

    json: Path | None = None
    markdown: Path | None = None
    html: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        check(json=self.json, markdown=self.markdown, html=self.html, plot=self.plot)

    def write(self, report: Report) -> None:
        """Write all of them."""
        from paceline.evaluation.page import html
        from paceline.evaluation.plot import draw

        if self.json is not None:
            report.write(self.json)
        if self.markdown is not None:
            _markdown(report, self.markdown)
        if self.html is not None:
            self.html.write_text(html(report), encoding="utf-8")
        if self.plot is not None:
            draw(report, self.plot)


def _markdown(report: Report, path: Path) -> None:
    """The page, and its pictures under names that begin with its own."""
    from paceline.evaluation.figures import pictures, png
    from paceline.evaluation.markdown import markdown
    from paceline.evaluation.tables import boards

    found: dict[str, list[tuple[str, str]]] = {}
    for board in boards(report):
        for picture in pictures(board):
            name = f"{path.stem}-{board.size}-{picture.name}.png"
            png(picture, path.with_name(name), f"{report.settings['model']}, {board.info.label}")
            found.setdefault(board.size, []).append((f"{picture.title}: {picture.note}", name))
    path.write_text(markdown(report, found), encoding="utf-8")


def show(report: Report, console: Console) -> None:
    """Tables and notes in the terminal."""
    from rich.text import Text

    from paceline.evaluation import sentences as say
    from paceline.evaluation import tables as t

    arranged = t.boards(report)
    found = list(t.sections(report, arranged))
    for section in found:
        if len(found) <= TABLES or section.workload == section.board.total:
            _table(section, console)
    rows = [row for board in arranged for row in board.rows]
    for note in (
        say.machine(report),
        say.mode_note(report),
        *say.SHORT_NOTES,
        *say.differences(report, rows),
        *say.left_out(report),
    ):
        console.print(Text(note, "dim"))
    for sentence in say.missing(report):
        console.print(Text(sentence, "yellow"))


def _table(section: Section, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from paceline.evaluation import own
    from paceline.evaluation import sentences as say
    from paceline.evaluation import tables as t

    report = section.board.report
    speed = f"at {report.modes.bandwidths[section.mode] / 1e9:.0f} GB/s, bound {section.bound:.0f}"
    title = Text(f"{section.board.info.label} · {say.title_of(section)}", "bold")
    title.append(f"  {speed}, {section.loops:.0%} loops", "dim")
    table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for column in t.COLUMNS:
        if column.short is not None:
            table.add_column(column.short, justify="right", no_wrap=True)
    table.add_column("same", justify="right", no_wrap=True)
    for row in section.rows:
        cells = zip(t.COLUMNS, section.cells(row), strict=True)
        shown = [text for column, (text, _) in cells if column.short is not None]
        name = t.label(t.who(row)).replace("transformers", "HF").replace("prompt lookup", "lookup")
        style = "" if row.side == own.SIDE else "dim"
        table.add_row(name, *shown, t.same_text(row, report), style=style)
    console.print(table)
    console.print()
