"""`paceline train lm`: the whole recipe on a miniature corpus, and its error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from paceline.commands.train import app

from .conftest import source
from .test_corpus import unrelated

SMALL = ["--preset", "tiny", "--length", "16", "--batch", "2", "--vocabulary", "280", "--no-extra"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(120):
        (folder / f"m{number}.py").write_text(source(number) + unrelated(number))
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["lm", *map(str, arguments)], env={"COLUMNS": "200"})


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
        (["--steps", "1", "--preset", "huge"], "unknown preset"),
        (["--steps", "1", "--teacher", "nowhere"], "not a folder"),
        (["--steps", "1", "--optimizer", "sgd"], "unknown optimizer"),
        (["--steps", "1", "--resume"], "nothing to resume"),
        (["--steps", "1", "--own-text", "0.5"], "need a --teacher"),
    ],
)
def test_bad_arguments_are_one_line_errors(arguments: list[str], message: str, corpus: Path, tmp_path: Path) -> None:
    result = call("--out", tmp_path / "out", *SMALL, "--corpus", corpus, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
