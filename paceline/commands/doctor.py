"""`paceline doctor`: what this machine has, how fast it is, and what to expect of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from paceline.commands import options as o

if TYPE_CHECKING:
    from rich.table import Table

#: Bytes of bfloat16 weights of model sizes that people ask about.
SIZES = {"100 M": 0.2e9, "500 M": 1e9, "1 B": 2e9, "8 B": 16e9}


def doctor(
    model: o.Model = "pocket-code",
    dtype: o.Dtype = None,
    device: o.Device = None,
    inflated: o.Inflated = None,
    as_json: o.Json = False,
) -> None:
    """Say what this machine has, measure it (a few seconds), and say what to expect."""
    o.hush()
    from paceline.evaluation.machine import survey
    from paceline.models.loading import load_model

    found = survey(load_model(model, dtype=dtype, device=device, inflated=inflated))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _facts(found):
        table.add_row(name, Text(value))
    table.add_row("pass", _curve(found))
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for sentence in expectations(found):
        console.print(Text(f"• {sentence}"))


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "paceline", f"{found['paceline']}" + (f", commit {found['commit']}" if found["commit"] else "")
    yield "software", f"Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}"
    yield "cpu", f"{found['cpu']}, {found['cores']} cores, torch uses {found['threads']} threads"
    yield "flags", ", ".join(found["isa"]) or "none that matter"
    yield "gpu", found["gpu"] or "none"
    yield "memory", f"{found['memory_bytes'] / 2**30:.1f} GiB"
    speeds = found["bandwidth_bytes_per_second"].items()
    yield "bandwidth", ", ".join(f"{v / 1e9:.1f} GB/s {_threads(k)}" for k, v in speeds)
    here = [f"{name} {version}" for name, version in found["installed"].items() if version]
    yield "optional", ", ".join(here) or "none"
    yield "missing", ", ".join(name for name, version in found["installed"].items() if not version) or "nothing"
    yield "model", f"{found['model']}, {found['weight_bytes'] / 1e6:.1f} MB in {found['dtype']} on {found['device']}"
    yield "path", found["forward_path"]
    yield "kernels", found["kernels"]


def _threads(count: str) -> str:
    return {"0": "on the GPU", "1": "with one thread"}.get(count, f"with {count} threads")


def _curve(found: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in ("rows", "ms", "of one row"):
        table.add_column(name, justify="right")
    for (rows, spent), times in zip(found["pass_seconds"].items(), found["pass_relative"].values(), strict=True):
        table.add_row(rows, f"{spent * 1e3:.2f}", f"{times:.2f}")
    return table


def expectations(found: dict[str, Any]) -> Iterator[str]:
    """Plain sentences that follow from the measurements."""
    bandwidth = max(found["bandwidth_bytes_per_second"].values())
    bounds = ", ".join(f"{name}: {bandwidth / size:.0f}" for name, size in SIZES.items())
    yield f"A token needs all weights once, so without drafts bfloat16 models reach at most, in tokens/s: {bounds}."
    free, one = found["free_rows"], found["pass_seconds"]["1"]
    if free > 1:
        yield f"Up to {free} rows cost at most 1.25 times as much as one: {free - 1} drafted tokens are nearly free."
    else:
        yield "Even two rows cost noticeably more than one: drafts must be right often to pay."
    share = found["weight_bytes"] / bandwidth / one
    yield f"A pass of {found['model']} takes {one * 1e3:.1f} ms, of which reading its weights explains {share:.0%}."
    if not found["bfloat16_fast"]:
        yield "This CPU is not fast with bfloat16: float32 is the default."
    if found["threads"] < (found["cores"] or 1):
        yield f"torch uses {found['threads']} of {found['cores']} cores; OMP_NUM_THREADS may hold it back."
