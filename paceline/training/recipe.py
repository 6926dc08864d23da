"""From nothing to a trained folder: corpus, tokenizer, packed tokens, a teacher's lessons, training.

Every stage leaves its result in the work folder and is skipped when that is there, so a second run (or a
draft trained beside its target) starts where the first one got to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from paceline.errors import BadRequest

from .corpus import DEFAULT_ROOM, Document, Source, build_corpus
from .lessons import Lessons, Writing, describe, embeddings, halve_products, write_lessons
from .lm import LMConfig, Trainer
from .packing import PackedTokens, pack
from .presets import check_preset, preset_config
from .report import Reporter
from .tokenizer import LEAST, MOST, VOCABULARY, train_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which model, from which texts, into which folder."""

    preset: str
    out: Path
    work: Path
    """Tokenizer, packed tokens and checkpoint."""
    corpus: tuple[Path, ...] = ()
    """Folders of Python files to train on; none means the installed packages."""
    extra: Path | None = None
    """An optional folder of extra text."""
    edits: float = 0.0
    """Bytes of edits of training functions beside each byte of other text."""
    teacher: Path | None = None
    """A folder whose model is distilled; its tokenizer is used as well."""
    writing: Writing | None = None
    """What the teacher writes for the model to learn from; needed with a teacher."""
    vocabulary: int = VOCABULARY

    def __post_init__(self) -> None:
        check_preset(self.preset)
        if not LEAST <= self.vocabulary <= MOST:
            raise BadRequest(f"vocabulary: {self.vocabulary} is not allowed; {LEAST} (every byte) to {MOST} tokens are")
        for name, folder in (("out", self.out), ("work", self.work)):
            if folder.exists() and not folder.is_dir():
                raise BadRequest(f"{name}: {str(folder)!r} is a file; a folder is needed")
        if not 0 <= self.edits <= 1:
            raise BadRequest(f"edits: {self.edits} is not allowed; a number from 0 to 1 is needed")
        if (self.teacher is None) != (self.writing is None):
            raise BadRequest("lessons need a teacher, and a teacher gives lessons")

    @property
    def checkpoint(self) -> Path:
        """Where this preset's checkpoint lies."""
        return self.work / f"{self.preset}.pt"


def run(recipe: Recipe, config: LMConfig, resume: bool = False, console: Console | None = None) -> float:
    """Do every stage that is left; returns the final validation bits per byte."""
    console = console or Console(stderr=True)
    if resume and not recipe.checkpoint.exists():
        raise BadRequest(f"nothing to resume: {recipe.checkpoint} does not exist")
    if not resume and recipe.checkpoint.exists():
        raise BadRequest(f"{recipe.checkpoint} exists: continue it with --resume, or choose another --work")
    torch.manual_seed(config.seed)
    tokenizer = prepare(recipe, console)
    text = PackedTokens(recipe.work / "train.bin", config.length, config.seed)
    model = LlamaForCausalLM(preset_config(recipe.preset, len(tokenizer), tokenizer.eos_token_id, config.length))
    train: PackedTokens | Lessons = text
    if recipe.teacher is not None:
        teacher = load_teacher(recipe.teacher, len(tokenizer), config.device)
        model = LlamaForCausalLM(student_config(recipe.preset, teacher))
        borrow_embeddings(model, teacher, np.bincount(text.tokens, minlength=len(tokenizer)))
        train = learn(recipe, teacher, text, config.seed, console)
    console.print(f"{recipe.preset}: {model.num_parameters() / 1e6:.2f} million parameters", highlight=False)
    validation = PackedTokens(recipe.work / "validation.bin", config.length)
    trainer = Trainer(model, tokenizer, train, validation, config, recipe.out, recipe.checkpoint)
    if resume:
        trainer.resume()
    return trainer.run(Reporter(console, config.log_seconds))


def load_teacher(folder: Path, vocabulary: int, device: str) -> PreTrainedModel:
    """The teacher, ready to write, if its vocabulary is the student's."""
    teacher: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if teacher.config.vocab_size != vocabulary:
        raise BadRequest(f"the teacher has {teacher.config.vocab_size} tokens, the tokenizer {vocabulary}")
    halve_products(teacher)
    nn.Module.to(teacher.eval(), device)
    return teacher


def student_config(preset: str, teacher: PreTrainedModel) -> LlamaConfig:
    """A preset with the teacher's vocabulary and context, though its lessons may be shorter."""
    config = teacher.config
    return preset_config(preset, config.vocab_size, config.eos_token_id, config.max_position_embeddings)


@torch.no_grad()
def borrow_embeddings(model: PreTrainedModel, teacher: PreTrainedModel, counts: np.ndarray) -> None:
    """Start from the principal components of the teacher's embeddings, weighted by the tokens' `counts` `[V]`.

    Which tokens are alike takes more text to learn than anything else in a small model, and the teacher knows it.
    """
    theirs, ours = embeddings(teacher).float(), embeddings(model)
    share = torch.from_numpy(counts / counts.sum()).to(theirs)
    _, axes = torch.linalg.eigh(theirs.T @ (share[:, None] * theirs))
    width = min(ours.shape[1], theirs.shape[1])
    ours[:, :width] = theirs @ axes.flip(1)[:, :width]


def learn(recipe: Recipe, teacher: PreTrainedModel, text: PackedTokens, seed: int, console: Console) -> Lessons:
    """The teacher's lessons, written to the work folder if they are not there."""
    assert recipe.writing is not None
    path = recipe.work / "lessons.bin"
    if not path.exists():
        with Progress(console=console) as progress:
            task = progress.add_task("the teacher writes", total=recipe.writing.rows)
            write_lessons(teacher, text, recipe.writing, path, seed, partial(progress.advance, task))
    if json.loads(path.with_suffix(".json").read_text()) != describe(teacher, recipe.writing):
        raise BadRequest(f"{path} was written by another teacher or with other options: choose another --work")
    return Lessons(path, seed)


def prepare(recipe: Recipe, console: Console) -> PreTrainedTokenizerFast:
    """Tokenizer and packed tokens in the work folder."""
    folder = recipe.work / "tokenizer"
    packed = [recipe.work / name for name in ("train.bin", "validation.bin")]
    if not (folder.exists() and all(path.exists() for path in packed)):
        recipe.work.mkdir(parents=True, exist_ok=True)
        train, validation = collect(recipe, console)
        with console.status("training the tokenizer"):
            tokenizer = make_tokenizer(recipe, train)
        with Progress(console=console) as progress:
            for documents, path in zip((train, validation), packed, strict=True):
                task = progress.add_task(f"packing {path.stem}", total=len(documents))
                pack(documents, tokenizer, path, partial(progress.advance, task))
        tokenizer.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if recipe.teacher is not None:
        theirs = PreTrainedTokenizerFast.from_pretrained(recipe.teacher)
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise BadRequest(
                f"{recipe.work} was packed with another tokenizer than the teacher's: choose another --work"
            )
    return tokenizer


def collect(recipe: Recipe, console: Console) -> tuple[list[Document], list[Document]]:
    """Training and validation documents of the recipe."""
    sources = [Source(folder.name, folder, cap=1000 * DEFAULT_ROOM) for folder in recipe.corpus] or None
    with console.status("reading the corpus"):
        train, validation = build_corpus(sources, recipe.extra, recipe.edits)
    if not train or not validation:
        raise BadRequest(
            f"corpus: {len(train)} documents for training and {len(validation)} held out are too few; at least one of "
            "each is needed, and about one in fifty Python files of 200 to 200,000 bytes is held out"
        )
    megabytes = sum(document.size for document in train) / 1e6
    console.print(f"corpus: {len(train)} documents, {megabytes:.1f} MB, {len(validation)} held out", highlight=False)
    return train, validation


def make_tokenizer(recipe: Recipe, train: list[Document]) -> PreTrainedTokenizerFast:
    """The teacher's tokenizer, or a new one from every second document (more would not change the merges)."""
    if recipe.teacher is not None:
        return PreTrainedTokenizerFast.from_pretrained(recipe.teacher)
    return train_tokenizer((document.text for document in train[::2]), recipe.vocabulary)
