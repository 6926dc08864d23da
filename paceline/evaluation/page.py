"""A benchmark's report as one HTML file: no network, light and dark, tables that sort."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from paceline.evaluation import own, peers
from paceline.evaluation.figures import pictures, svg
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
from paceline.evaluation.summary import PEER_BEST, PEER_PLAIN, Row
from paceline.evaluation.tables import COLUMNS, Board, Section, boards, choice, label, same_text, sections, times, who

STYLE = """
:root { --paper: #ffffff; --ink: #1f2a37; --faint: #66727f; --grid: #e6e9ed; --own: #b9d8d2; --peer: #d9dcdf;
  --tint: #f6f8f9; --accent: #16786c; --warn: #a4541c;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media (prefers-color-scheme: dark) { :root { --paper: #14191f; --ink: #e3e8ed; --faint: #94a0ac; --grid: #2a323b;
  --own: #2c5550; --peer: #3d454e; --tint: #1a2129; --accent: #5dbcae; --warn: #e0a060; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 var(--font); }
h1 { font-size: 1.7rem; margin: 0 0 .6rem; } h2 { font-size: 1.3rem; margin: 3rem 0 .2rem; }
h3 { font-size: 1rem; margin: 2rem 0 0; } p { margin: .3rem 0; max-width: 60rem; }
.faint, .note { color: var(--faint); font-size: .87rem; } .warn { color: var(--warn); font-weight: 600; }
pre { background: var(--tint); padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap; font-size: .82rem; }
figure { margin: .6rem 0 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; display: block; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0 0; }
.card { background: var(--tint); border-radius: 8px; padding: .7rem 1rem; min-width: 11rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } details { margin: .7rem 0; } summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; margin: .6rem 0 0; font-size: .84rem; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--paper); color: var(--faint); font-weight: 500; cursor: pointer;
  text-align: right; white-space: nowrap; padding: .3rem .55rem; border-bottom: 1px solid var(--grid); }
th[aria-sort] { color: var(--ink); } th[aria-sort=ascending]::after { content: " ▴"; }
th[aria-sort=descending]::after { content: " ▾"; }
td { text-align: right; padding: .22rem .55rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
td:first-child { max-width: 20rem; overflow: hidden; text-overflow: ellipsis; }
tr.peer td { color: var(--faint); } td.best { color: var(--accent); font-weight: 600; }
ul { padding-left: 1.2rem; } li { margin: .15rem 0; max-width: 62rem; }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => head.addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const down = i > 0 ? now !== "descending" : now === "ascending";
    const key = row => row.cells[i].dataset.value ?? row.cells[i].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const way = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -way : way;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(order));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }));
}
"""


def html(report: Report) -> str:
    """The whole page."""
    title = f"Benchmark of {report.settings['model']}"
    arranged = boards(report)
    warnings = [f'<p class="warn">{escape(sentence)}.</p>' for sentence in missing(report)]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(machine(report))}.</p>",
        f'<p class="faint">{escape(date(report))}. {escape(mode_note(report))}.</p>',
        f"<pre>{escape(command(report))}</pre>",
        *warnings,
        *(part for board in arranged for part in _size(board)),
        "<h2>Notes</h2>",
        _list(NOTES),
        _folded("Where texts differ", list(differences(report, [row for board in arranged for row in board.rows]))),
        _folded("Left out", left_out(report)),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _size(board: Board) -> list[str]:
    parts = [f"<h2>{escape(board.info.label)}</h2>", f'<p class="faint">{escape(about(board.info))}</p>', _cards(board)]
    for picture in pictures(board):
        note = f'<p class="note">{escape(picture.note)}</p>'
        parts.append(f"<h3>{escape(picture.title)}</h3>{note}<figure>{svg(picture)}</figure>")
    parts.append("<h3>Figures</h3>")
    return [*parts, *(_section(section) for section in sections(board.report, [board]))]


def _cards(board: Board) -> str:
    """The fastest drafter at each temperature, in large figures."""
    cards = []
    for temperature in board.temperatures:
        rows = [row for m in board.methods if (row := board.row(temperature, board.total, m)) is not None]
        mine = [row for row in rows if row.side == own.SIDE and row.method != own.PLAIN]
        for baseline, against in ((PEER_BEST, "transformers' best mode"), (PEER_PLAIN, "transformers' plain decoding")):
            found = [(value, row) for row in mine if (value := times(row, baseline)) is not None]
            if found:
                value, row = max(found, key=lambda pair: pair[0])
                what = f"{choice(temperature)}: {label(who(row))} against {against}"
                cards.append(f'<div class="card"><b>{value:.2f}×</b><span class="note">{escape(what)}</span></div>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _section(section: Section) -> str:
    """A table that is open when it stands for all workloads."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("method", *(c.head for c in COLUMNS), "same text"))
    columns = [[value for _, value in section.cells(row)] for row in section.rows]
    best = [max((v for v in column if v is not None), default=None) for column in zip(*columns, strict=True)]
    body = "".join(_line(section, row, best) for row in section.rows)
    table = f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    shown = " open" if section.workload == section.board.total else ""
    note = f'<p class="note">{escape(caption(section))}</p>'
    return f"<details{shown}><summary>{escape(title_of(section))}</summary>{note}{table}</details>"


#: Columns whose largest figure is the best one, and is shown so.
RISING = frozenset(column.head for column in COLUMNS[:7])


def _line(section: Section, row: Row, best: Sequence[float | None]) -> str:
    report = section.board.report
    about = report.methods.get(row.method) if row.side == own.SIDE else None
    hint = f' title="{escape(about["summary"])}"' if about else ""
    cells = [f"<td{hint}>{escape(label(who(row)))}</td>"]
    for column, (text, value), top in zip(COLUMNS, section.cells(row), best, strict=True):
        mark = ' class="best"' if column.head in RISING and value is not None and value == top else ""
        cells.append(f'<td{mark} data-value="{"" if value is None else f"{value:.6g}"}">{escape(text)}</td>')
    cells.append(f"<td>{escape(same_text(row, report))}</td>")
    return f"<tr{' class=peer' if row.side == peers.SIDE else ''}>{''.join(cells)}</tr>"


def _list(sentences: Sequence[str]) -> str:
    return '<ul class="note">' + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _folded(title: str, sentences: Sequence[str]) -> str:
    return f"<details><summary>{escape(title)} ({len(sentences)})</summary>{_list(sentences)}</details>"
