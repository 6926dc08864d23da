"""A benchmark's report as a Markdown page."""

from __future__ import annotations

from paceline.evaluation.report import Report
from paceline.evaluation.sentences import (
    NOTES,
    about,
    caption,
    command,
    date,
    differences,
    left_out,
    machine,
    missing,
    mode_note,
    title_of,
)
from paceline.evaluation.tables import COLUMNS, Section, boards, same_text, sections


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
