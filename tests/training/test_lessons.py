"""What a teacher writes for its draft, how it is stored, and the loss on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from paceline.errors import BadRequest
from paceline.training.lessons import (
    Guesses,
    Lessons,
    Writing,
    choose,
    continue_rows,
    halve_products,
    lesson_loss,
    write_lessons,
)
from paceline.training.packing import PackedTokens
from paceline.training.presets import preset_config
from paceline.training.recipe import borrow_embeddings

VOCABULARY, LENGTH = 300, 24


@pytest.fixture
def teacher() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(preset_config("tiny", VOCABULARY, 0, 64)).eval()


@torch.no_grad()
def laws(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `[R, length, V]` of all but the first tokens, in one pass."""
    return model(input_ids=rows[:, :-1]).logits.float().log_softmax(-1)


@pytest.mark.parametrize("read", [1, 7, LENGTH])
def test_teacher_writes_what_it_would_and_its_guesses_are_its_own(teacher: LlamaForCausalLM, read: int) -> None:
    prompts = torch.randint(VOCABULARY, (6, read))
    rows, guesses = continue_rows(teacher, prompts, Writing(tokens=LENGTH, length=LENGTH), top=5)
    assert rows.shape == (6, LENGTH + 1)
    assert rows[:, :read].equal(prompts)
    expected = laws(teacher, rows)
    greedy = expected[::2, read - 1 :].argmax(-1)
    assert rows[::2, read:].equal(greedy)
    assert (guesses.tokens[0, read - 1 :, 0] == rows[0, read:]).all()
    assert guesses.scores.float().allclose(expected.gather(2, guesses.tokens), atol=4e-3)
    assert guesses.scores.float().allclose(expected.topk(5).values, atol=4e-3)


def test_greedy_and_sampled_choices() -> None:
    law = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(4000, 4)
    torch.manual_seed(0)
    assert (choose(law, torch.zeros(4000)) == 0).all()
    shares = choose(law, torch.full((4000,), 0.5)).bincount(minlength=4) / 4000
    assert shares.allclose(torch.tensor([25, 9, 4, 0]) / 38, atol=0.03)


def test_products_in_half_precision_change_little(teacher: LlamaForCausalLM) -> None:
    rows = torch.randint(VOCABULARY, (2, LENGTH + 1))
    before = laws(teacher, rows)
    halve_products(teacher)
    after = laws(teacher, rows)
    assert not after.equal(before)
    assert after.allclose(before, atol=0.02)
    assert teacher.get_input_embeddings().weight.dtype == torch.float32


def test_file_of_lessons(work: Path, tmp_path: Path, teacher: LlamaForCausalLM) -> None:
    text, path, finished = PackedTokens(work / "train.bin", LENGTH), tmp_path / "lessons.bin", list[int]()
    write_lessons(teacher, text, Writing(tokens=10 * LENGTH + 5, length=LENGTH), path, advance=finished.append)
    lessons = Lessons(path)
    assert len(lessons.rows) == sum(finished) == 10
    windows, guesses = lessons.batch(0, 10)
    assert len({row.tobytes() for row in windows.numpy()}) == 10
    assert guesses.tokens.shape == guesses.scores.shape == (10, LENGTH, 16)
    starts = {row[: LENGTH // 5].numpy().tobytes() for row in text.batch(0, 10)}
    assert {row[: LENGTH // 5].numpy().tobytes() for row in windows} == starts  # a prompt is at least so long
    again = Lessons(path)
    again.batch(7, 3)
    assert again.batch(0, 10)[0].equal(windows)
    assert not lessons.batch(1, 10)[0].equal(windows)  # another order in the next epoch
    assert sorted(map(bytes, lessons.batch(1, 10)[0].numpy())) == sorted(map(bytes, windows.numpy()))


def test_lessons_are_the_text_itself_where_nothing_is_written(
    work: Path, tmp_path: Path, teacher: LlamaForCausalLM
) -> None:
    text = PackedTokens(work / "train.bin", LENGTH)
    write_lessons(teacher, text, Writing(tokens=5 * LENGTH, share=0, length=LENGTH), tmp_path / "lessons.bin")
    ours = {row[:LENGTH].numpy().tobytes() for row in Lessons(tmp_path / "lessons.bin").batch(0, 5)[0]}
    assert ours == {row[:LENGTH].numpy().tobytes() for row in text.batch(0, 5)}


def test_loss_is_the_whole_divergence_where_all_is_kept() -> None:
    torch.manual_seed(0)
    logits, goal = torch.randn(7, 6), torch.randn(7, 6).log_softmax(-1)
    targets = torch.randint(6, (7,))
    scores, tokens = goal.topk(5)
    found = lesson_loss(logits, targets, Guesses(tokens, scores), distill=1.0)
    expected = F.kl_div(logits.log_softmax(-1), goal, log_target=True, reduction="batchmean")
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    text = lesson_loss(logits, targets, Guesses(tokens, scores), distill=0.0)
    assert text.item() == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-6)


def test_loss_of_a_sure_teacher_is_finite() -> None:
    logits = torch.full((1, 6), -50.0, requires_grad=True)
    guesses = Guesses(torch.tensor([[2, 3]]), torch.tensor([[0.0, -30.0]]))
    loss = lesson_loss(logits, torch.tensor([2]), guesses, 0.9)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_student_starts_from_the_teachers_embeddings(
    teacher: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    student = LlamaForCausalLM(preset_config("tiny", VOCABULARY, 0, 64))
    borrow_embeddings(student, teacher, np.arange(VOCABULARY))
    ours, theirs = (m.get_input_embeddings().weight.detach() for m in (student, teacher))
    assert (ours @ ours.T).allclose(theirs @ theirs.T, atol=1e-4)  # as wide: a rotation


@pytest.mark.parametrize(
    ("options", "message"), [({"share": 1.0}, "from 0 up to 1"), ({"tokens": 10, "length": 20}, "fill a row")]
)
def test_bad_writing(options: dict[str, float], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Writing(**options)  # type: ignore[arg-type]
