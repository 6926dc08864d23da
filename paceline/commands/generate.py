"""`paceline generate`: complete a prompt, as it is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.commands import options as o
from paceline.errors import BadRequest

if TYPE_CHECKING:
    from paceline.api import Engine
    from paceline.requests import Event, Result, TokenLogprob


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - or none reads standard input.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    model: o.Model = "pocket-code",
    drafter: o.Drafter = "ngram",
    verifier: o.Verifier = "coupled",
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    policy: o.Policies = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Most tokens to generate.")] = 128,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal texts.")] = 0,
    n: Annotated[int, typer.Option("--n", help="Number of samples.")] = 1,
    logprobs: Annotated[int | None, typer.Option("--logprobs", help="List tokens with this many alternatives.")] = None,
    prediction: o.Prediction = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Colour accepted, rejected and bonus tokens.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say where tokens and time came from.")] = False,
    as_json: o.Json = False,
    view: o.View = None,
    memory: o.Memory = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    inflated: o.Inflated = None,
    max_rows: o.MaxRows = 8,
    fast: o.Fast = True,
    trust_remote_code: o.Trust = False,
    allow_pickle: o.Pickle = False,
) -> None:
    """Continue a prompt and print the text as it is generated."""
    if show_drafts and (as_json or n > 1):
        raise BadRequest("show-drafts: colours one text as it is written; leave out --json and --n")
    o.note_greedy(temperature, top_k=top_k, top_p=top_p, min_p=min_p, n=n > 1)
    text = o.read_prompt(prompt, file)
    expected = o.prediction(prediction)
    engine = o.load_engine(
        model,
        drafter=drafter,
        verifier=verifier,
        dtype=dtype,
        device=device,
        inflated=inflated,
        max_rows=max_rows,
        fast=fast,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        view=view,
        memory=memory,
    )
    settings: dict[str, Any] = {
        **o.policies(top_k, top_p, min_p, policy),
        **expected,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "stop": tuple(stop or ()),
        "seed": seed,
        "n": n,
        "logprobs": logprobs,
        "echo": echo,
    }
    if as_json:
        _print_json(engine, _results(engine, text, settings))
    elif n > 1:
        _print_samples(engine, _results(engine, text, settings), stats)
    else:
        _print_stream(engine, text, settings, show_drafts, stats)


def _results(engine: Engine, prompt: str, settings: dict[str, Any]) -> list[Result]:
    results = engine.generate(prompt, **settings)
    return results if isinstance(results, list) else [results]


def _print_json(engine: Engine, results: list[Result]) -> None:
    from paceline.evaluation.measures import stats_json

    def record(result: Result) -> dict[str, Any]:
        found: dict[str, Any] = {
            "text": result.text,
            "tokens": result.tokens,
            "finish_reason": result.finish_reason,
            "stop_reason": result.stop_reason,
            "prompt_tokens": result.prompt_tokens,
            "stats": stats_json(result.stats),
        }
        for name, entries in (("logprobs", result.logprobs), ("prompt_logprobs", result.prompt_logprobs)):
            if entries is not None:
                found[name] = [_logprob(engine, entry) for entry in entries]
        if result.error is not None:
            found["error"] = str(result.error)
        return found

    records = [record(result) for result in results]
    typer.echo(json.dumps(records[0] if len(records) == 1 else {"samples": records}, ensure_ascii=False))


def _logprob(engine: Engine, entry: TokenLogprob) -> dict[str, Any]:
    top = [{"token": t, "text": engine.tokenizer.decode([t]), "logprob": p} for t, p in entry.top]
    text = engine.tokenizer.decode([entry.token])
    return {
        "token": entry.token,
        "text": text,
        "logprob": entry.logprob,
        "policy_logprob": entry.policy_logprob,
        "top": top,
    }


def _print_samples(engine: Engine, results: list[Result], stats: bool) -> None:
    from paceline.commands.breakdown import print_logprobs, print_stats
    from paceline.requests import Stats

    total = Stats()
    for i, result in enumerate(results):
        typer.secho(f"--- {i + 1} of {len(results)} ---", dim=True)
        typer.echo(result.text)
        if result.error is not None:
            raise result.error
        if result.logprobs is not None:
            print_logprobs(engine.tokenizer, result.logprobs)
        total.add(result.stats)
    if stats:
        print_stats(total, f"{len(results)} samples")


def _print_stream(engine: Engine, prompt: str, settings: dict[str, Any], show_drafts: bool, stats: bool) -> None:
    from paceline.commands.breakdown import print_logprobs, print_stats
    from paceline.commands.painter import Painter

    show: Callable[[Event], None] = _write
    if show_drafts:
        request = engine.request(prompt, **settings)
        painter = Painter(engine.tokenizer, request.prompt, request.drafter.shape)
        painter.legend()
        show = painter
    if settings["echo"]:
        typer.secho(prompt, dim=True, nl=False)
    result = engine.generate(prompt, callback=show, **settings)
    typer.echo()
    if result.logprobs is not None:
        print_logprobs(engine.tokenizer, result.logprobs)
    if stats:
        print_stats(result.stats, f"ended by {result.finish_reason}")


def _write(event: Event) -> None:
    sys.stdout.write(event.text)
    sys.stdout.flush()
