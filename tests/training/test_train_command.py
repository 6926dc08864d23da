"""`paceline train lm`: the whole recipe on a miniature corpus, and its error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from paceline.cli import app

from .conftest import source
from .test_corpus import unrelated

SMALL = ["--preset", "tiny", "--length", "16", "--batch", "2", "--vocabulary", "280"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(120):
        (folder / f"m{number}.py").write_text(source(number) + unrelated(number))
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", "lm", *map(str, arguments)], env={"COLUMNS": "200"})


def test_recipe_then_resume_then_draft(corpus: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    common = [*SMALL, "--corpus", corpus, "--work", work]
    assert call("--out", out, "--steps", 2, *common).exit_code == 0
    assert call("--out", out, "--steps", 3, *common).exit_code == 2  # would overwrite the checkpoint
    assert call("--out", out, "--steps", 3, "--resume", *common).exit_code == 0
    AutoModelForCausalLM.from_pretrained(out)
    assert len(AutoTokenizer.from_pretrained(out)) == 280
    taught = ["--out", tmp_path / "draft", "--teacher", out, "--lessons", 640, *SMALL, "--corpus", corpus]
    draft = call("--steps", 2, *taught)
    assert draft.exit_code == 0, draft.output
    assert call("--steps", 3, "--resume", *taught).exit_code == 0  # on the same lessons
    other = call("--steps", 3, "--resume", "--own-text", 0.3, *taught)
    assert other.exit_code == 2
    assert "with other options" in other.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "budget"),
        (["--steps", "1", "--preset", "huge"], "preset: 'huge' is unknown"),
        (["--steps", "1", "--teacher", "nowhere"], "teacher: 'nowhere' is not a folder"),
        (["--steps", "1", "--optimizer", "sgd"], "optimizer: 'sgd' is unknown"),
        (["--steps", "1", "--resume"], "nothing to resume"),
        (["--steps", "1", "--own-text", "0.5"], "give one with --teacher"),
        (["--steps", "0"], "steps: 0 is not allowed"),
        (["--minutes", "nan"], "minutes: nan is not allowed"),
        (["--steps", "1", "--lr", "0"], "lr: 0.0 is not allowed"),
        (["--steps", "1", "--length", "0"], "length: 0 is not allowed"),
        (["--steps", "1", "--micro-batch", "0"], "micro_batch: 0 is not allowed"),
        (["--steps", "1", "--batch", "3"], "batch: 3 is not allowed; a multiple"),
        (["--steps", "1", "--seed", "-1"], "seed: -1 is not allowed"),
        (["--steps", "1", "--vocabulary", "99999"], "vocabulary: 99999 is not allowed"),
        (["--steps", "1", "--threads", "0"], "threads: 0 is not allowed"),
        (["--steps", "1", "--device", "tpu"], "device: 'tpu' is unknown"),
    ],
)
def test_bad_arguments_are_one_line_errors(arguments: list[str], message: str, corpus: Path, tmp_path: Path) -> None:
    result = call("--out", tmp_path / "out", *SMALL, "--corpus", corpus, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_corpus_too_small_and_places_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.py").write_text(source(1))
    small = call("--out", tmp_path / "out", *SMALL, "--steps", 1, "--corpus", tmp_path / "few")
    assert small.exit_code == 2
    assert "corpus: 1 documents for training and 0 held out are too few" in " ".join(small.stderr.split())
    place = call("--out", tmp_path / "out", *SMALL, "--steps", 1, "--work", tmp_path / "few" / "a.py")
    assert place.exit_code == 2
    assert "is a file; a folder is needed" in place.stderr


def test_evaluate(corpus: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    assert call("--out", out, "--steps", 1, *SMALL, "--corpus", corpus, "--work", work).exit_code == 0
    exact = CliRunner().invoke(app, ["train", "evaluate", str(out), "--work", str(work), "--dtype", "float32"])
    assert exact.exit_code == 0, exact.output
    lines = exact.stdout.splitlines()
    assert [line.rsplit(":", 1)[0] for line in lines[1:]] == ["out", "xz -9, one stream", "xz -9, each document"]
    halved = CliRunner().invoke(app, ["train", "evaluate", str(out), "--work", str(work), "--dtype", "bfloat16"])
    bits = [float(result.stdout.splitlines()[1].split()[1]) for result in (exact, halved)]
    assert bits[0] == pytest.approx(bits[1], abs=0.01)
    other = CliRunner().invoke(app, ["train", "evaluate", "pocket-code", "--work", str(work)])
    assert other.exit_code == 0, other.output
    assert [*other.stdout.splitlines()[::2], other.stdout.splitlines()[3]] == [lines[0], lines[2], lines[3]]
    wrong = CliRunner().invoke(app, ["train", "evaluate", str(work), "--work", str(work)])
    assert wrong.exit_code == 2
    assert "model: there is no" in wrong.stderr
