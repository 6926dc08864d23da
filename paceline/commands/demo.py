"""`paceline demo`: one real prompt, the same text as transformers token for token, and how much sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from paceline.commands import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.api import Engine
    from paceline.evaluation.samples import Sample

PROMPT = "bz2.BZ2File.write"


def demo(
    drafter: o.Drafter = "auto",
    inflated: Annotated[str, typer.Option(help="Size at which the pocket model runs; none: as it is.")] = "100m",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of the text.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each contestant.")] = 3,
) -> None:
    """Complete code from a file the model has never seen, and compare with transformers on the same weights."""
    o.hush()
    from rich.console import Console
    from rich.text import Text

    from paceline.api import Engine
    from paceline.commands.progress import Progress
    from paceline.evaluation import own, peers, workloads
    from paceline.evaluation.runner import Arena, Batch
    from paceline.evaluation.samples import Job

    console = Console(highlight=False)
    text = next(p.text for p in workloads.load(["code"])[0]["code"] if p.name == PROMPT)
    preset = None if inflated == "none" else inflated
    console.print(Text("Loading the pocket model, once for Paceline and once for transformers …", "dim"))
    engine = Engine.load("pocket-code", dtype="float32", inflated=preset, max_rows=1)
    module = peers.load_peer("pocket-code", "float32", None, preset)
    size = f"{engine.model.parameters / 1e6:.0f} million parameters" + (", inflated" if preset else "")
    console.print(Text(f"{engine.model.name}: {size}, float32, {engine.model.path}\n", "dim"))

    ids = engine.tokenizer(text)["input_ids"]
    contestants = [own.Method(engine, name) for name in dict.fromkeys((own.PLAIN, drafter))]
    batch = Batch("code", PROMPT, (tuple(ids),))
    arena = Arena("demo", [peers.peers(module, None)[0], *contestants], [Job(max_new_tokens)], engine.model.device)
    arena.warm_up(batch)
    streamed = _stream(console, engine, text, drafter, max_new_tokens)
    arena.progress = progress = Progress(Console(stderr=True, highlight=False))
    arena.play([batch], rounds)
    progress.close()
    _verdict(console, arena.samples, streamed)


def _stream(console: Console, engine: Engine, text: str, drafter: str, count: int) -> list[int]:
    """Print the completion as it comes, drafts in colour; returns its tokens."""
    from rich.text import Text

    from paceline.commands.painter import Painter

    request = engine.request(text, drafter=drafter)
    painter = Painter(engine.tokenizer, request.prompt, request.drafter.shape, console)
    painter.legend()
    console.print(Text(text, "dim"), end="", soft_wrap=True)
    result = engine.generate(text, drafter=drafter, max_new_tokens=count, ignore_eos=True, callback=painter)
    console.print("\n")
    return result.tokens


def _verdict(console: Console, samples: list[Sample], streamed: list[int]) -> None:
    """The comparison; exit code 1 when a text differs."""
    from rich.table import Table
    from rich.text import Text

    from paceline.evaluation import own, peers
    from paceline.evaluation.equality import first_difference
    from paceline.evaluation.summary import Modes, Spread, compare, usual_mode_of

    reference = next(s for s in samples if s.side == peers.SIDE).tokens[0]
    found = Modes(samples)
    mode = usual_mode_of(samples, found)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name, side in (("", "left"), ("tokens/s", "right"), ("speed-up", "right"), ("tokens a pass", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    plain = [s for s in samples if s.side == peers.SIDE]
    for side, method in dict.fromkeys((s.side, s.method) for s in samples):
        mine = [s for s in samples if (s.side, s.method) == (side, method)]
        rate = Spread.of([s.rate for s in mine if found.of(s) == mode])
        faster = compare(mine, plain, found)
        passes = mine[0].stats["tokens"] / mine[0].stats["forward_passes"] if mine[0].stats else 1.0
        name = f"{side}, {'plain' if method in (own.PLAIN, peers.PLAIN) else method}"
        table.add_row(
            Text(name, "bold" if side == own.SIDE else "dim"),
            f"{rate.median:.1f}" if rate else "-",
            f"{faster.ratio.median:.2f}×" if faster else "-",
            f"{passes:.2f}",
        )
    console.print(table)
    if found.busy:
        console.print(Text("Other programs were computing meanwhile: do not trust these speeds.", "yellow"))
    texts = [streamed, *(s.tokens[0] for s in samples)]
    where = [at for text in texts if (at := first_difference(text, reference)) is not None]
    if where:
        console.print(Text(f"\nNOT IDENTICAL: a text differs from transformers' at token {min(where)}.", "bold red"))
        raise typer.Exit(1)
    same = f"\nIdentical: all {len(reference)} tokens, in every run, are those of transformers' generate."
    console.print(Text(same, "bold green"))
