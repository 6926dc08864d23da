"""`paceline train`: train the pocket models, or ones like them, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.commands import options as o
from paceline.errors import BadRequest

app = typer.Typer(help="Train small models on this machine.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Train small models on this machine."""


def _folder(model: Path) -> Path:
    """The folder given, or that of the pocket model of this name."""
    from paceline.models.loading import POCKET

    return POCKET / model if not model.exists() and (POCKET / model / "config.json").is_file() else model


@app.command("lm")
def lm(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    preset: Annotated[str, typer.Option(help="pocket-code, pocket-code-draft or tiny.")] = "pocket-code",
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes of work.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget in tokens.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimizer steps.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Distil from the model in this folder, or a pocket model.")
    ] = None,
    own_text: Annotated[
        float | None, typer.Option(help="Part of its lessons that the teacher writes itself [default: 0.6].")
    ] = None,
    lessons: Annotated[int | None, typer.Option(help="Tokens of the teacher's lessons [default: 3000000].")] = None,
    distill: Annotated[float, typer.Option(help="Weight of the teacher against the text, 0 to 1.")] = 0.9,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Folder of Python files instead of the installed packages.")
    ] = None,
    extra: Annotated[Path | None, typer.Option(help="Folder of extra text (*.jsonl, *.gz).")] = None,
    edits: Annotated[
        float, typer.Option(help="Bytes of edited functions beside each byte of other text, 0 to 1.")
    ] = 0.0,
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
    o.hush()
    import torch

    from paceline.models.loading import pick_device
    from paceline.training.lessons import Writing
    from paceline.training.lm import LMConfig
    from paceline.training.recipe import Recipe, run

    teacher = _folder(teacher) if teacher is not None else None
    for name, folder in [*(("corpus", path) for path in corpus or ()), ("extra", extra), ("teacher", teacher)]:
        if folder is not None and not folder.is_dir():
            raise BadRequest(f"{name}: {str(folder)!r} is not a folder")
    if threads is not None:
        torch.set_num_threads(o.thread_count(threads))
    config = LMConfig(
        tokens=tokens,
        steps=steps,
        minutes=minutes,
        length=length,
        batch=batch,
        micro_batch=micro_batch,
        lr=lr,
        optimizer=optimizer,
        distill=distill,
        device=pick_device(device).type,
        seed=seed,
    )
    asked: dict[str, Any] = {"share": own_text, "tokens": lessons}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and teacher is None:
        raise BadRequest("own-text, lessons: these are what a teacher writes; give one with --teacher")
    writing = Writing(length=length, **given) if teacher is not None else None
    work = work or out.with_name(out.name + ".work")
    run(Recipe(preset, out, work, tuple(corpus or ()), extra, edits, teacher, writing, vocabulary), config, resume)


@app.command("evaluate")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model, or a pocket model.")],
    work: Annotated[Path, typer.Option(help="The work folder with its held-out text, validation.bin.")],
    dtype: o.Dtype = None,
) -> None:
    """Bits per byte of held-out text: the model, and `xz -9` on the same documents."""
    o.hush()
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from paceline.models.loading import pick_device, pick_dtype
    from paceline.training.evaluate import model_bits_per_byte, size, unpack, xz_bits_per_byte

    model = _folder(model)
    for name, path in (("model", model / "config.json"), ("work", work / "validation.bin")):
        if not path.is_file():
            raise BadRequest(f"{name}: there is no {str(path)!r}; `paceline train lm` makes one")
    kind = pick_dtype(dtype, pick_device("cpu"), packed=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    # Another model may be compared on these texts; only the tokenizer that packed them can read them.
    packer = work / "tokenizer"
    texts = unpack(
        work / "validation.bin", PreTrainedTokenizerFast.from_pretrained(packer) if packer.is_dir() else tokenizer
    )
    typer.echo(f"{len(texts)} documents, {size(texts) / 1e6:.2f} MB")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()
    found = f"{model_bits_per_byte(loaded, tokenizer, texts):.3f} bits per byte"
    typer.echo(f"{model.name}: {found}, in {str(kind).removeprefix('torch.')}")
    typer.echo(f"xz -9, one stream: {xz_bits_per_byte(texts, together=True):.3f} bits per byte")
    typer.echo(f"xz -9, each document: {xz_bits_per_byte(texts, together=False):.3f} bits per byte")
