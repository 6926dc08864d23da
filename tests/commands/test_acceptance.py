"""`paceline acceptance`: table, file and picture of a tiny pair of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run

SMALL = ("--workloads", "code", "--limit", "1", "--positions", "2", "--longest", "40", "--temperatures", "1,0.5")


def test_table_file_and_picture(run: Run, tiny: str, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("a.json", "a.md", "a.png")}
    written = ("--json", str(files["a.json"]), "--markdown", str(files["a.md"]), "--plot", str(files["a.png"]))
    result = run("acceptance", "-m", tiny, "--draft", tiny, *SMALL, "-k", "2", *written)
    assert result.exit_code == 0, result.stderr
    assert "| `optimal` |" in result.stdout
    found = json.loads(files["a.json"].read_text())
    assert found["positions"] == {"code": 2}
    rates = {(r["temperature"], r["k"], r["name"]): r["mean"] for r in found["rates"]}
    assert {key[:2] for key in rates} == {(1.0, 1), (1.0, 2), (0.5, 1), (0.5, 2)}
    # A model that drafts for itself is always right.
    assert all(
        rates[1.0, k, name] == pytest.approx(1) for k in (1, 2) for name in ("rejection", "coupled", "recursive")
    )
    assert files["a.md"].read_text() in result.stdout
    assert files["a.png"].stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--temperatures", "0"), "temperatures: 0.0"),
        (("--temperatures", "warm"), "'warm' is not a number"),
        (("-k", "0"), "most: 0"),
        (("-k", "1000"), "most: 1000 is not allowed; 1 to 16"),
        (("--temperatures", ""), "'' is not a number"),
        (("--positions", "0"), "positions: 0 is not allowed"),
        (("--plot", "a.txt"), "must end in"),
        (("--json", "no/such/folder.json"), "there is no folder"),
        (("--workloads", "cod"), "did you mean 'code'"),
    ],
)
def test_mistakes_are_named(run: Run, tiny: str, words: tuple[str, ...], message: str) -> None:
    result = run("acceptance", "-m", tiny, "--draft", tiny, *SMALL[:8], *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_another_vocabulary_is_refused(run: Run, tiny: str, other: str) -> None:
    result = run("acceptance", "-m", tiny, "--draft", other, *SMALL)
    assert result.exit_code == 2
    assert "a draft model needs the target's vocabulary" in result.stderr
