"""Statistics and log-probabilities for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paceline.evaluation.measures import PHASES, acceptance
from paceline.requests import Stats, TokenLogprob


def print_stats(stats: Stats, ending: str, console: Console | None = None) -> None:
    """Where a text's tokens and time came from, on stderr, so that the text alone can be piped on."""
    console = console or Console(stderr=True, highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    rate = stats.tokens / stats.seconds if stats.seconds else 0.0
    table.add_row("speed", f"{stats.tokens} tokens in {stats.seconds:.2f} s: {rate:.1f} tokens/s, {ending}")
    table.add_row("passes", f"{stats.forward_passes}, {stats.tokens_per_pass:.2f} tokens a pass")
    if stats.drafted:
        share = stats.accepted / stats.drafted
        table.add_row("drafts", f"{stats.drafted} tokens drafted, {stats.accepted} accepted ({share:.0%})")
        table.add_row("by depth", _depths(stats))
    table.add_row("time", _times(stats))
    table.add_row("overhead", f"{stats.overhead:.1%} of decoding lies outside the target's passes")
    table.add_row("cache", f"{stats.cache_bytes / 1e6:.1f} MB")
    console.print(table)


def _depths(stats: Stats) -> Text:
    line = Text()
    for depth, share in enumerate(acceptance(stats), 1):
        line.append(f"{depth}", "dim").append(f" {share:.0%}  ", "green")
    return line


def _times(stats: Stats) -> Text:
    line = Text()
    for phase in PHASES:
        share = getattr(stats, phase) / stats.seconds if stats.seconds else 0.0
        line.append(f"{phase} ", "dim").append(f"{share:.0%}  ")
    return line


def print_logprobs(tokenizer: Any, entries: list[TokenLogprob], console: Console | None = None) -> None:
    """A line a token: its log-probability and the alternatives."""
    console = console or Console(highlight=False)
    table = Table("token", "id", "logprob", "alternatives", box=None, header_style="dim")
    for entry in entries:
        others = "  ".join(f"{tokenizer.decode([t])!r} {p:.2f}" for t, p in entry.top)
        token = Text(repr(tokenizer.decode([entry.token])))
        table.add_row(token, str(entry.token), f"{entry.logprob:.3f}", Text(others))
    console.print(table)
