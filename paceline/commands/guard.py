"""How commands end: exit codes, one-line errors, quiet interruption."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from paceline.errors import BadRequest, PacelineError, Unsupported

FAILED, MISTAKE = 1, 2
#: Base of all complaints about the command line; typer does not export it by name.
UsageError = typer.BadParameter.__mro__[2]


class Guarded(TyperGroup):
    """A command group whose errors are one red line on stderr, with a traceback only under `--debug`."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **options: Any,
    ) -> Any:
        debug, words = _take_debug(list(sys.argv[1:] if args is None else args))
        try:
            code = super().main(words, prog_name, standalone_mode=False, **options)
            sys.stdout.flush()
        except Exception as error:
            if not standalone_mode:
                raise
            code = _report(error, debug)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _take_debug(words: list[str]) -> tuple[bool, list[str]]:
    """Find `--debug` anywhere before a `--`, and leave it out."""
    end = words.index("--") if "--" in words else len(words)
    return "--debug" in words[:end], [w for w in words[:end] if w != "--debug"] + words[end:]


def _report(error: Exception, debug: bool) -> int:
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more at exit; give it something that takes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return MISTAKE
    if debug:
        traceback.print_exception(error)
    typer.secho(f"error: {_sentence(error)}", fg="red", err=True)
    return MISTAKE if isinstance(error, BadRequest | Unsupported | UsageError) else FAILED


def _sentence(error: Exception) -> str:
    if isinstance(error, UsageError):
        text = str(error.format_message())  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        text += f" (see {context.command_path} --help)" if context is not None else ""
    elif isinstance(error, PacelineError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (--debug shows where)"
    return " ".join(text.split())
