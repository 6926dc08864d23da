"""`paceline`: the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from paceline import __version__
from paceline.commands import acceptance, bench, datastore, demo, doctor, explain, generate, methods, report, train
from paceline.commands.guard import Guarded

app = typer.Typer(
    cls=Guarded,
    help="One decoding engine for generative sequence models: draft, verify, choose, measure.",
    epilog="Exit codes: 0 done, 1 failed while running, 2 a mistake in what was asked.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("explain")(explain.explain)
app.command("methods")(methods.methods)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("acceptance")(acceptance.acceptance)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(train.app, name="train")
app.add_typer(datastore.app, name="datastore")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paceline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may also follow a command.")] = False,
) -> None:
    """One decoding engine for generative sequence models: draft, verify, choose, measure."""


def main() -> None:
    """Entry point of the `paceline` script."""
    app()
