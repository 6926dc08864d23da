"""`paceline bench`: methods side by side, beside transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.commands import options as o
from paceline.commands import outputs as out
from paceline.errors import BadRequest

if TYPE_CHECKING:
    from paceline.evaluation.report import Report

#: Where a setting's name differs from its option's.
RENAMED = {"temperature": "temperatures", "warm": "fresh"}
#: Options that together make the setting `policies`.
POLICIES = ("top_k", "top_p", "min_p", "policy")


def bench(
    context: typer.Context,
    model: o.Model = "pocket-code",
    sizes: Annotated[
        str, typer.Option(help="Comma list: pocket (as it is), or larger models of equal function: 100m, 500m.")
    ] = "pocket",
    drafters: Annotated[
        str, typer.Option(help="all, or a comma list of specs; a spec after a minus sign is left out of all.")
    ] = "all",
    verifier: o.Verifier = "coupled",
    workloads: Annotated[
        str, typer.Option(help="Comma list: code, edit, json, prose, humaneval, spec_bench, gsm8k; or all.")
    ] = "all",
    data: Annotated[Path | None, typer.Option(help="Folder with the files of external workloads.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most prompts a workload.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens generated for each prompt.")] = 128,
    view: o.View = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    repeats: Annotated[int, typer.Option(help="Runs of each prompt.")] = 1,
    temperature: Annotated[
        str, typer.Option("--temperature", "-t", help="Comma list; 0 is greedy. Each prompt is run at every one.")
    ] = "0",
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    policy: o.Policies = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    batch: Annotated[int, typer.Option(help="Prompts given together.")] = 1,
    at_once: Annotated[
        int | None, typer.Option(help="Texts of a batch written at a time, while the others wait; all by default.")
    ] = None,
    shortest: Annotated[
        int | None,
        typer.Option(help="Tokens of a batch's shortest text; lengths are spread between it and the longest."),
    ] = None,
    peers: Annotated[
        str,
        typer.Option(help="Modes of transformers' generate: all, none, or a list of plain, prompt lookup, assisted."),
    ] = "all",
    assistant: Annotated[str | None, typer.Option(help="Draft model of transformers' assisted generation.")] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Drafters keep what they learned from earlier prompts.")] = False,
    least: Annotated[
        float,
        typer.Option(help="Leave out what its first prompts show to be slower than so many times plain decoding."),
    ] = 0.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    budget: Annotated[float | None, typer.Option(help="Stop after about this many seconds.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this report, with its settings where no others are given.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file, after every round.")
    ] = None,
    markdown_file: out.Markdown = None,
    html_file: out.Html = None,
    plot_file: out.Plot = None,
) -> None:
    """Measure methods on workloads: paired, interleaved, at equal memory bandwidth, with equal work.

    Every method generates the same number of tokens from the same prompts with the same weights; texts are compared
    token for token.
    """
    files = out.Outputs(json_file or resume, markdown_file, html_file, plot_file)
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
        "view": view,
        "dtype": dtype,
        "device": device,
        "repeats": repeats,
        "temperatures": _temperatures(temperature),
        "seed": seed,
        "batch": batch,
        "at_once": at_once,
        "shortest": shortest,
        "peers": tuple(split(peers)),
        "assistant": assistant,
        "fresh": not warm,
        "least": least,
        "budget": budget,
    }
    report = _run(settings, _given(context), resume, threads, files.json)
    files.write(report)
    from rich.console import Console

    out.show(report, Console(highlight=False))
    if not report.complete:
        typer.secho("The budget ended before all was measured; --resume goes on.", fg="yellow", err=True)


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


def _temperatures(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in split(text))
    except ValueError as error:
        raise BadRequest(f"temperature: {text!r} is not a comma list of numbers, such as 0,0.8") from error


def _given(context: typer.Context) -> set[str]:
    """Settings that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    names = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return {RENAMED.get(name, name) for name in names} | ({"policies"} if names & set(POLICIES) else set())


def _run(
    values: dict[str, Any], given: set[str], resume: Path | None, threads: int | None, file: Path | None
) -> Report:
    o.hush()
    import torch
    from rich.console import Console

    from paceline.commands.progress import Progress
    from paceline.evaluation.bench import Settings, run
    from paceline.evaluation.report import Report

    if threads is not None:
        torch.set_num_threads(o.thread_count(threads))
    earlier = Report.read(resume) if resume is not None else None
    if earlier is not None:
        known = {name: value for name, value in earlier.settings.items() if name in values and name not in given}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        values = values | known | lists | {"budget": values["budget"]}
    progress = Progress(Console(stderr=True, highlight=False))
    try:
        return run(Settings(**values), progress, earlier, lambda report: _keep(report, file))
    except KeyboardInterrupt:
        if file is not None and file.exists():
            typer.secho(f"\nInterrupted; {file} has what was measured, --resume {file} goes on.", fg="yellow", err=True)
        raise
    finally:
        progress.close()


def _keep(report: Report, file: Path | None) -> None:
    """What was measured so far; a report that is never finished counts as incomplete."""
    if file is not None:
        report.complete = False
        report.write(file, summary=False)
