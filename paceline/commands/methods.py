"""`paceline methods`: the catalogue."""

from __future__ import annotations

import dataclasses
import inspect
import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.commands import options as o
from paceline.errors import BadRequest

if TYPE_CHECKING:
    from paceline.registry import Method

KINDS = ("controller", "drafter", "policy", "tree", "verifier", "view")
COLOURS = {"lossless": "green", "greedy": "cyan", "lossy": "yellow", "defines": "blue"}


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method alone, with its options.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="controller, drafter, policy, tree, verifier or view.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List every method: what it does, what it guarantees, what it needs, where it comes from.

    With a NAME, say what its options are and what they mean.
    """
    if as_json and as_markdown:
        raise BadRequest("markdown: there is --json too; give one of them")
    if kind is not None and kind not in KINDS:
        raise BadRequest(f"kind: {kind!r} is unknown; {', '.join(KINDS)} are allowed")
    o.hush()
    from paceline import registry

    every = registry.methods(kind)
    found = every if name is None else [m for m in every if m.name == name]
    if not found:
        raise BadRequest(f"{kind or 'method'} {registry.suggest(str(name), sorted({m.name for m in every}))}")
    if as_json:
        typer.echo(json.dumps([_record(m) for m in found], indent=1, ensure_ascii=False))
    elif as_markdown:
        typer.echo(markdown(found))
    elif name is not None:
        typer.echo("\n\n".join(described(m) for m in found))
    else:
        _print(found)


def described(found: Method) -> str:
    """A method with the defaults and the meaning of its options, and where it comes from."""
    promise = found.guarantee.value + (f" ({found.knob})" if found.knob else "")
    about = inspect.getdoc(found.cls) or ""
    source = f"{found.paper}, {found.year}."
    return "\n\n".join((f"{found.kind}, {promise}: {found.summary}", spelled(found), about, source))


def spelled(found: Method) -> str:
    """The spec that names every option with its default; `...` where there is none."""
    from paceline.specs import Spec

    defaults: dict[str, object] = {}
    for field in dataclasses.fields(found.cls):
        if field.init:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            defaults[field.name] = "..." if default is dataclasses.MISSING else default
    return str(Spec(found.name, (), defaults))


def markdown(found: list[Method]) -> str:
    """The catalogue as a Markdown table (the one in the README)."""
    rows = ["| kind | name | guarantee | what it does | source |", "|---|---|---|---|---|"]
    for m in found:
        promise = m.guarantee.value + (f" (`{m.knob}`)" if m.knob else "")
        rows.append(f"| {m.kind} | `{m.name}` | {promise} | {m.summary} | {m.paper} ({m.year}) |")
    return "\n".join(rows)


def _record(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "kind": method.kind,
        "guarantee": method.guarantee.value,
        "needs": sorted(method.needs),
        "options": spelled(method),
        "paper": method.paper,
        "year": method.year,
        "summary": method.summary,
    }


def _print(found: list[Method]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for kind, group in groupby(found, key=lambda m: m.kind):
        table.add_row(Text(f"{kind}s" if kind != "policy" else "policies", "bold underline"))
        for m in group:
            promise = m.guarantee.value + (f" ({m.knob})" if m.knob else "")
            about = Text(m.summary).append(f" {m.paper}, {m.year}.", "dim")
            if m.needs:
                about.append(f" Needs: {', '.join(sorted(m.needs))}.", "dim")
            table.add_row(Text(m.name, "bold"), Text(promise, COLOURS[m.guarantee.value]), about)
        table.add_row()
    Console(highlight=False).print(table)
    typer.echo("Choose a method by its name or with options: --drafter 'draft(length=4)'.")
    typer.echo("`paceline methods NAME` says what a method's options are.")
