"""`paceline acceptance`: how often each verifier accepts one of k siblings, beside the most that any could."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.commands import options as o
from paceline.commands.outputs import check
from paceline.errors import BadRequest


def acceptance(
    model: o.Model = "pocket-code",
    draft: Annotated[str, typer.Option(help="The draft model: of the same vocabulary.")] = "pocket-code-draft",
    workloads: Annotated[str, typer.Option(help="Comma list: code, edit, json, prose, ...; or all.")] = "all",
    data: Annotated[Path | None, typer.Option(help="Folder with the files of external workloads.")] = None,
    limit: Annotated[int, typer.Option(help="Most texts a workload.")] = 4,
    positions: Annotated[int, typer.Option(help="Most positions of a text.")] = 8,
    longest: Annotated[int, typer.Option(help="Tokens of a text that are read.")] = 512,
    temperatures: Annotated[str, typer.Option(help="Comma list of numbers above 0.")] = "0.3,0.7,1.0",
    most: Annotated[int, typer.Option("--most", "-k", help="Largest number of siblings.")] = 4,
    dtype: o.Dtype = "float32",
    device: o.Device = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the table to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the rates into this PNG, SVG or PDF.")] = None,
) -> None:
    """Measure acceptance rates on real pairs of laws, without generating.

    Target and draft read the same texts; their laws at some positions are what verifiers would judge. Rates are exact
    for each pair but for shared noise with k > 1 and the later of many siblings without replacement: those are sampled.
    A second table says how far each verifier is below the most that its own kind of drafts allows.
    """
    check(json=json_file, markdown=markdown_file, plot=plot_file)
    for name, value in (("positions", positions), ("limit", limit), ("longest", longest - 1)):
        if value < 1:
            least = 2 if name == "longest" else 1
            raise BadRequest(f"{name}: {value + least - 1} is not allowed; at least {least} is needed")
    warm = [_number(part) for part in temperatures.split(",")]
    o.hush()
    import torch

    from paceline.drafters.vocabulary import check_vocabulary
    from paceline.evaluation import survey as s
    from paceline.evaluation.workloads import load
    from paceline.models.loading import load_model, load_tokenizer

    s.check(warm, most)
    prompts, missing = load([name.strip() for name in workloads.split(",")], data, limit)
    if not prompts:
        raise BadRequest(f"workloads: {'; '.join(missing.values()) or 'none given'}")
    target, small = (load_model(name, dtype=dtype, device=device) for name in (model, draft))
    check_vocabulary(small, target)
    tokenizer = load_tokenizer(model)
    length = min(longest, target.context, small.context)
    texts = {name: s.tokens_of(found, tokenizer, length) for name, found in prompts.items()}
    pairs = {name: s.collect(target, small, found, positions) for name, found in texts.items() if found}
    p, q = (torch.cat([pair[side] for pair in pairs.values()]) for side in (0, 1))
    found = s.Survey(model, draft, {name: len(pair[0]) for name, pair in pairs.items()}, s.survey(p, q, warm, most))
    if json_file is not None:
        found.write(json_file)
    if markdown_file is not None:
        markdown_file.write_text(s.markdown(found) + "\n", encoding="utf-8")
    if plot_file is not None:
        s.draw(found, plot_file)
    typer.echo(s.markdown(found))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"temperatures: {text.strip()!r} is not a number; numbers above 0 are needed") from None
