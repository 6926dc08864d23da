"""The loop: it learns, ends on its budget, resumes exactly, distils, and leaves a loadable folder."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from paceline.errors import BadRequest
from paceline.training.lessons import Lessons, Writing, write_lessons
from paceline.training.lm import LMConfig, Trainer
from paceline.training.packing import PackedTokens
from paceline.training.presets import PRESETS, preset_config
from paceline.training.report import Reporter
from paceline.training.schedule import ActiveClock, rate

QUIET = Console(quiet=True)


def trainer(work: Path, out: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Trainer:
    """A tiny model on the miniature corpus."""
    lessons = options.pop("lessons", None)
    defaults = {"steps": 12, "length": 32, "batch": 4, "bf16": False, "lr": 1e-2, "validate_windows": 4}
    config = LMConfig(**{**defaults, **options})
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(preset_config("tiny", len(tokenizer), tokenizer.eos_token_id, 32))
    train = lessons or PackedTokens(work / "train.bin", config.length)
    validation = PackedTokens(work / "validation.bin", config.length)
    return Trainer(model, tokenizer, train, validation, config, out / "model", out / "tiny.pt")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_loss_goes_down(work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, optimizer: str) -> None:
    run = trainer(work, tmp_path, tokenizer, steps=40, optimizer=optimizer)
    before = run.validate()
    assert run.run(Reporter(QUIET)) < 0.7 * before


def test_bf16_autocast_trains(work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run = trainer(work, tmp_path, tokenizer, steps=10, bf16=True)
    before = run.validate()
    assert run.run(Reporter(QUIET)) < before
    assert next(run.model.parameters()).dtype == torch.float32


def test_resume_equals_an_uninterrupted_run(work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = trainer(work, tmp_path / "whole", tokenizer)
    whole.run(Reporter(QUIET))
    first = trainer(work, tmp_path / "parts", tokenizer)
    for _ in range(5):
        first.train_step()
    first.save()
    second = trainer(work, tmp_path / "parts", tokenizer, seed=9)
    second.config = first.config
    second.resume()
    assert second.step == 5
    second.run(Reporter(QUIET))
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(second.model.state_dict()[name]), name


def test_sigterm_leaves_a_usable_checkpoint(
    work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(work, tmp_path, tokenizer, steps=1000)
    step = run.train_step

    def step_then_terminate() -> float:
        loss = step()
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(run, "train_step", step_then_terminate)
    handler = signal.getsignal(signal.SIGTERM)
    said = io.StringIO()
    run.run(Reporter(Console(file=said)))
    assert said.getvalue().endswith("stopped after step 1; --resume goes on\n")
    assert signal.getsignal(signal.SIGTERM) is handler
    again = trainer(work, tmp_path, tokenizer)
    again.resume()
    assert again.step == 1


def test_student_approaches_its_teacher(work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    teacher = trainer(work, tmp_path / "teacher", tokenizer, steps=30)
    teacher.run(Reporter(QUIET))
    writing = Writing(tokens=40 * 32, length=32)
    write_lessons(teacher.model, teacher.train, writing, tmp_path / "lessons.bin")
    student = trainer(
        work, tmp_path / "student", tokenizer, seed=3, lessons=Lessons(tmp_path / "lessons.bin"), distill=1.0
    )
    windows, guesses = student.train.batch(0, 4)
    before = student.loss(windows, guesses).item()
    student.run(Reporter(QUIET))
    assert 0 <= student.loss(windows, guesses).item() < before
    student.model = teacher.model
    assert student.loss(windows, guesses).item() == pytest.approx(0, abs=1e-4)


def test_exported_folder(work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run = trainer(work, tmp_path, tokenizer, steps=1)
    run.run(Reporter(QUIET))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    expected = run.model.model.embed_tokens.weight.to(torch.bfloat16)
    assert loaded.model.embed_tokens.weight.equal(expected)


@pytest.mark.parametrize(("name", "millions"), [("pocket-code", 8.65), ("pocket-code-draft", 2.75)])
def test_preset_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(preset_config(name, 4096, 0))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.02)
    assert "tiny" in PRESETS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "budget"),
        ({"minutes": -1.0}, "above 0"),
        ({"steps": 1, "batch": 3, "micro_batch": 2}, "multiple"),
        ({"steps": 1, "distill": 1.5}, "from 0 to 1"),
    ],
)
def test_bad_config(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        LMConfig(**options)


def test_progress_is_that_of_the_tightest_budget() -> None:
    config = LMConfig(tokens=100_000, steps=100, minutes=10.0, length=100, batch=2)
    assert config.progress(50, 60.0) == 0.5
    assert config.progress(10, 450.0) == 0.75
    assert dataclasses.replace(config, steps=None).progress(250, 0.0) == 0.5


def test_schedule_warms_up_stays_and_decays_to_zero() -> None:
    factors = [rate(p, 0.1, 0.3) for p in (0.0, 0.05, 0.1, 0.5, 0.7, 0.85, 1.0)]
    assert 0 < factors[0] < factors[1] < 1
    assert factors[2:5] == [1, 1, 1]
    assert 0 < factors[5] < 1
    assert factors[6] == pytest.approx(0)


def test_a_pause_does_not_eat_the_budget() -> None:
    clock = ActiveClock()
    for duration in [2.0] * 10 + [600.0]:
        clock.add(duration)
    assert clock.seconds == 26.0
