"""Options that several commands share, and the engine they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.errors import BadRequest

if TYPE_CHECKING:
    from paceline.api import Engine

Model = Annotated[str, typer.Option("--model", "-m", help="A pocket model, a folder or a Hub id (organisation/name).")]
Drafter = Annotated[
    str, typer.Option("--drafter", "-d", help="Who drafts: none, ngram, 'draft(length=4)', ... (see methods).")
]
Verifier = Annotated[str, typer.Option("--verifier", help="Who judges drafts.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Sample from the k most likely tokens.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Sample from the most likely mass p.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Drop tokens below this share of the best.")]
Policies = Annotated[list[str] | None, typer.Option("--policy", "-p", help="A further policy's spec; may be repeated.")]
Prediction = Annotated[
    str | None,
    typer.Option("--prediction", help="File with the expected output; it saves time, never changes the text."),
]
View = Annotated[
    str | None, typer.Option("--view", help="Run part of the model, which changes the text: 'unified(speedup=2)', ...")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16, float16 or float64 [default: the fastest].")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda [default: cuda if there is one].")]
Inflated = Annotated[str | None, typer.Option("--inflated", help="Embed the model in a larger one of equal function.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", help="Cap on weights, caches and passes, such as 512MiB."),
]
MaxRows = Annotated[int, typer.Option("--max-rows", help="Most sequences decoded at once.")]
Fast = Annotated[bool, typer.Option("--fast/--no-fast", help="Replace the forward pass by a faster equal one.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Accept checkpoints that are not safetensors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def load_engine(model: str, **options: Any) -> Engine:
    """An engine, loaded without the libraries' progress bars."""
    hush()
    from paceline.api import Engine

    return Engine.load(model, **options)


def hush() -> None:
    """Keep progress bars and advice of transformers and its hub client out of the terminal."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub.set_verbosity_error()


def thread_count(threads: int) -> int:
    """The number of threads asked for. Raises `BadRequest`."""
    if threads < 1:
        raise BadRequest(f"threads: {threads} is not allowed; at least 1 is needed")
    return threads


def policies(top_k: int | None, top_p: float | None, min_p: float | None, specs: list[str] | None) -> dict[str, Any]:
    """The engine's arguments for policies; what was not given is left out."""
    given = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if specs:
        chosen["policies"] = list(specs)
    return chosen


def note_greedy(temperature: float, **given: object) -> None:
    """Say on standard error which options have no effect because nothing is drawn at temperature 0."""
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if temperature == 0 and idle:
        typer.secho(
            f"note: greedy decoding leaves {', '.join(idle)} without effect; see --temperature", dim=True, err=True
        )


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The prompt's text from the argument, a file, or standard input. Raises `BadRequest`."""
    import sys

    if prompt is not None and prompt != "-" and file is not None:
        raise BadRequest("prompt: given both as an argument and with --file; give one of them")
    if file is not None:
        return read_text("prompt", file)
    if prompt is not None and prompt != "-":
        return _decoded("prompt", "the argument", prompt.encode("utf-8", "surrogateescape"))
    if sys.stdin is None or sys.stdin.isatty():  # none: the shell closed it
        raise BadRequest("prompt: none given; write it after the command, use --file, or pipe it in")
    try:
        found = sys.stdin.buffer.read()
    except OSError as error:
        raise BadRequest(f"prompt: standard input cannot be read: {error}; UTF-8 text is needed") from error
    return _decoded("prompt", "standard input", found)


def read_text(name: str, file: str) -> str:
    """What a file says; `name` is the option that named it. Raises `BadRequest`."""
    from pathlib import Path

    try:
        found = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise BadRequest(f"{name}: {file!r} cannot be read: {error}; a file of UTF-8 text is needed") from error
    return _decoded(name, repr(file), found)


def _decoded(name: str, source: str, found: bytes) -> str:
    """Text as it is: Python would translate line ends, and let what is no UTF-8 through in some locales."""
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{name}: {source} cannot be read: {error}; UTF-8 text is needed") from error


def prediction(file: str | None) -> dict[str, Any]:
    """The engine's argument for a file with the expected output; none where no file was given. Raises `BadRequest`."""
    return {} if file is None else {"prediction": read_text("prediction", file)}
