"""`paceline train`: train the pocket models, or ones like them, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Train small models on this machine.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Train small models on this machine."""


@app.command("lm")
def lm(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    preset: Annotated[str, typer.Option(help="pocket-code, pocket-code-draft or tiny.")] = "pocket-code",
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes of work.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget in tokens.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimizer steps.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Distil from the model in this folder.")] = None,
    own_text: Annotated[
        float | None, typer.Option(help="Part of its lessons that the teacher writes itself [default: 0.6].")
    ] = None,
    lessons: Annotated[int | None, typer.Option(help="Tokens of the teacher's lessons [default: 3000000].")] = None,
    distill: Annotated[float, typer.Option(help="Weight of the teacher against the text, 0 to 1.")] = 0.9,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Folder of Python files instead of the installed packages.")
    ] = None,
    extra: Annotated[Path | None, typer.Option(help="Folder of extra text (*.jsonl, *.gz).")] = None,
    no_extra: Annotated[bool, typer.Option("--no-extra", help="Do not look for the default extra text.")] = False,
    work: Annotated[
        Path | None, typer.Option(help="Folder for packed tokens and checkpoints [default: OUT.work].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the work folder's checkpoint.")] = False,
    length: Annotated[int, typer.Option(help="Window length in tokens.")] = 1024,
    batch: Annotated[int, typer.Option(help="Windows per step.")] = 8,
    micro_batch: Annotated[int, typer.Option(help="Windows per forward pass.")] = 2,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    vocabulary: Annotated[int, typer.Option(help="Tokens in a newly trained tokenizer.")] = 4096,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
) -> None:
    """Train a language model on Python source: corpus, tokenizer, packing and training in one go.

    With a teacher, the teacher first continues prompts cut from the training text, and the model learns from what it
    wrote and from its guesses at every token.

    Stop it with ctrl-C and go on with --resume. The budget counts work, so a suspended run loses nothing.
    """
    import torch

    from paceline.errors import BadRequest
    from paceline.training import corpus as texts
    from paceline.training import lm as training
    from paceline.training.lessons import Writing
    from paceline.training.recipe import Recipe, run

    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here", param_hint="--device")
    for folder in [*(corpus or []), *filter(None, [extra, teacher])]:
        if not folder.is_dir():
            raise typer.BadParameter(f"{folder} is not a folder")
    if threads is not None:
        torch.set_num_threads(threads)
    if extra is None and not no_extra and texts.DEFAULT_EXTRA.is_dir():
        extra = texts.DEFAULT_EXTRA
    work = work or out.with_name(out.name + ".work")
    try:
        config = training.LMConfig(
            tokens=tokens,
            steps=steps,
            minutes=minutes,
            length=length,
            batch=batch,
            micro_batch=micro_batch,
            lr=lr,
            optimizer=optimizer,
            distill=distill,
            device=device,
            seed=seed,
        )
        asked: dict[str, Any] = {"share": own_text, "tokens": lessons}
        given = {name: value for name, value in asked.items() if value is not None}
        if given and teacher is None:
            raise BadRequest("--own-text and --lessons need a --teacher")
        writing = Writing(length=length, **given) if teacher is not None else None
        recipe = Recipe(preset, out, work, tuple(corpus or ()), extra, teacher, writing, vocabulary)
        run(recipe, config, resume)
    except BadRequest as error:
        raise typer.BadParameter(str(error)) from error


@app.command("evaluate")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    work: Annotated[Path, typer.Option(help="The work folder with its held-out text, validation.bin.")],
) -> None:
    """Bits per byte of held-out text: the model, and `xz -9` on the same documents."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from paceline.training.evaluate import model_bits_per_byte, size, unpack, xz_bits_per_byte

    for path in (model / "config.json", work / "validation.bin"):
        if not path.exists():
            raise typer.BadParameter(f"{path} does not exist")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    texts = unpack(work / "validation.bin", tokenizer)
    typer.echo(f"{len(texts)} documents, {size(texts) / 1e6:.2f} MB")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    typer.echo(f"{model.name}: {model_bits_per_byte(loaded, tokenizer, texts):.4f} bits per byte")
    typer.echo(f"xz -9, one stream: {xz_bits_per_byte(texts, together=True):.4f} bits per byte")
    typer.echo(f"xz -9, each document: {xz_bits_per_byte(texts, together=False):.4f} bits per byte")
