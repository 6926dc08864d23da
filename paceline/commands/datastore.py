"""`paceline datastore`: texts on disk that the drafters `rest` and `aded` search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from paceline.commands.options import Json, Trust, hush

app = typer.Typer(help="Build and inspect datastores for retrieval drafters.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Build and inspect datastores for retrieval drafters."""


@app.command("build")
def build(
    out: Annotated[Path, typer.Argument(help="Folder for the datastore.")],
    files: Annotated[list[Path], typer.Argument(help="Text files, and folders of them.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose tokenizer: a pocket model, a folder or a Hub id.")],
    pattern: Annotated[str, typer.Option(help="Names of the files taken from folders.")] = "*",
    bucket: Annotated[int, typer.Option(min=1, help="Suffixes sorted at once; less needs less memory.")] = 1 << 22,
    force: Annotated[bool, typer.Option("--force", help="Replace an older datastore at OUT.")] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Tokenize text files and sort their suffixes, so that `rest(datastore=OUT)` finds what follows any words.

    Needs about 6 bytes of disk a token (8 for vocabularies above 65535) and 100 bytes of memory a suffix of BUCKET.
    """
    hush()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from paceline import datastore
    from paceline.datastore.texts import LARGEST, documents, find_files
    from paceline.models.loading import load_tokenizer

    tokenizer = load_tokenizer(None, model, trust_remote_code)
    found = find_files(files, pattern)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        reading = bars.add_task("tokenizing", total=max(1, sum(file.stat().st_size for file in found)))
        sorting = bars.add_task("sorting", total=1.0)
        texts = documents(found, tokenizer, lambda file: bars.advance(reading, file.stat().st_size))
        meta = datastore.build(
            out,
            texts,
            len(tokenizer),
            model=model,
            fingerprint=datastore.fingerprint(tokenizer),
            force=force,
            bucket=bucket,
            progress=lambda share: bars.update(sorting, completed=share),
        )
    typer.echo(f"{out}: {meta.tokens:,} tokens of {meta.documents:,} documents")
    if skipped := len(found) - meta.documents:
        why = f"no UTF-8 text in them, or more than {LARGEST / 1e6:.0f} MB"
        typer.secho(f"left out: {skipped:,} of {len(found):,} files: {why}", fg="yellow", err=True)


@app.command("info")
def info(
    folder: Annotated[Path, typer.Argument(help="A datastore.")],
    as_json: Json = False,
) -> None:
    """What a datastore holds."""
    from paceline.datastore import Datastore

    store = Datastore(folder)
    if as_json:
        typer.echo(json.dumps(vars(store.meta) | {"bytes": store.nbytes}, indent=2))
        return
    meta = store.meta
    typer.echo(f"tokens       {meta.tokens:,}")
    typer.echo(f"documents    {meta.documents:,}")
    typer.echo(f"on disk      {store.nbytes / 1e6:,.1f} MB")
    typer.echo(f"tokenizer    {meta.model or 'not named'}, {meta.vocabulary:,} tokens, {meta.fingerprint or 'unknown'}")
