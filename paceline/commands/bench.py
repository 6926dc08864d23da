"""`paceline bench`: methods side by side, beside transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.commands import options as o
from paceline.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.evaluation.report import Report


def bench(
    model: o.Model = "pocket-code",
    sizes: Annotated[
        str, typer.Option(help="Comma list: pocket (as it is), or larger models of equal function: 100m, 500m.")
    ] = "pocket",
    drafters: Annotated[str, typer.Option(help="all, or a comma list of specs.")] = "all",
    verifier: o.Verifier = "coupled",
    workloads: Annotated[
        str, typer.Option(help="Comma list: code, edit, json, prose, humaneval, spec_bench, gsm8k; or all.")
    ] = "all",
    data: Annotated[Path | None, typer.Option(help="Folder with the files of external workloads.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most prompts a workload.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens generated for each prompt.")] = 128,
    dtype: o.Dtype = None,
    device: o.Device = None,
    repeats: Annotated[int, typer.Option(help="Runs of each prompt.")] = 1,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    policy: o.Policies = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    batch: Annotated[int, typer.Option(help="Prompts generated together.")] = 1,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure transformers' generate as well.")] = True,
    assistant: Annotated[str | None, typer.Option(help="Draft model of transformers' assisted generation.")] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Drafters keep what they learned from earlier prompts.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    budget: Annotated[float | None, typer.Option(help="Stop after about this many seconds.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the report named by --json.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write tables to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw tokens/s into this PNG or SVG.")] = None,
) -> None:
    """Measure methods on workloads: paired, interleaved, at equal memory bandwidth, with equal work.

    Every method generates the same number of tokens from the same prompts with the same weights; greedy texts are
    compared token for token.
    """
    for path in (json_file, markdown_file, plot_file):
        if path is not None and not path.resolve().parent.is_dir():
            raise BadRequest(f"{path}: there is no folder {str(path.resolve().parent)!r}")
    if resume and json_file is None:
        raise BadRequest("resume: name the report to go on with by --json")
    settings = {
        "model": model,
        "sizes": tuple(split(sizes)),
        "drafters": tuple(split(drafters)),
        "verifier": verifier,
        "policies": o.policies(top_k, top_p, min_p, policy),
        "workloads": tuple(split(workloads)),
        "data": str(data) if data is not None else None,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "device": device,
        "repeats": repeats,
        "temperature": temperature,
        "seed": seed,
        "batch": batch,
        "peers": peers,
        "assistant": assistant,
        "fresh": not warm,
        "budget": budget,
    }
    report = _run(settings, json_file if resume else None, threads)
    if json_file is not None:
        report.write(json_file)
    _show(report, markdown_file, plot_file)


def split(text: str) -> list[str]:
    """Parts of a comma list; commas inside brackets belong to a part."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _run(values: dict[str, Any], earlier: Path | None, threads: int | None) -> Report:
    o.hush()
    import torch
    from rich.console import Console

    from paceline.commands.progress import Progress
    from paceline.evaluation.bench import Settings, run
    from paceline.evaluation.report import Report

    if threads is not None:
        if threads < 1:
            raise BadRequest(f"threads: {threads} is not allowed; at least 1 is needed")
        torch.set_num_threads(threads)
    settings = Settings(**values)
    report = Report.read(earlier) if earlier is not None and earlier.exists() else None
    progress = Progress(Console(stderr=True, highlight=False))
    try:
        return run(settings, progress, report)
    finally:
        progress.close()


def _show(report: Report, markdown_file: Path | None, plot_file: Path | None) -> None:
    from rich.console import Console

    from paceline.evaluation.plot import draw
    from paceline.evaluation.report import markdown

    if markdown_file is not None:
        markdown_file.write_text(markdown(report), encoding="utf-8")
    if plot_file is not None:
        draw(report, plot_file)
    _print(report, Console(highlight=False))
    if not report.complete:
        typer.secho("The budget ended before all was measured; --resume goes on.", fg="yellow", err=True)


def _print(report: Report, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from paceline.evaluation import report as r

    for section in r.sections(report):
        info = report.sizes[section.size]
        speed = f"at {report.modes.bandwidths[section.mode] / 1e9:.0f} GB/s, bound {section.bound:.0f}"
        title = Text(f"{info.label} · {section.workload}", "bold")
        title.append(f"  {speed}, {section.loops:.0%} loops", "dim")
        table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False, padding=(0, 1))
        for i, name in enumerate(r.SHORT):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for name, *cells in section.lines:
            style = "dim" if name.startswith("transformers") else ""
            label = name.replace("transformers", "hf").replace("prompt lookup", "lookup").removeprefix("paceline ")
            table.add_row(label, *cells, style=style)
        console.print(table)
        console.print()
    for note in (r.machine(report), r.mode_note(report), *r.NOTES, *r.differences(report)):
        console.print(Text(note, "dim"))
    for name, reason in report.skipped.items():
        console.print(Text(f"left out: {name}: {reason}", "dim"))
