"""`paceline report`: a benchmark's report shown again, without measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.commands import outputs as out


def report(
    file: Annotated[Path, typer.Argument(help="What `paceline bench --json` wrote.")],
    markdown_file: out.Markdown = None,
    html_file: out.Html = None,
    plot_file: out.Plot = None,
) -> None:
    """Show a benchmark's report, or write it as a page. Nothing is measured."""
    files = out.Outputs(markdown=markdown_file, html=html_file, plot=plot_file)
    from rich.console import Console

    from paceline.evaluation.report import Report

    found = Report.read(file)
    files.write(found)
    if not (markdown_file or html_file or plot_file):
        out.show(found, Console(highlight=False))
