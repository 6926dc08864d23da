"""`paceline methods`, `explain`, `doctor`, and the command line itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from paceline import __version__, registry
from paceline.commands.guard import Guarded
from paceline.commands.methods import spelled
from paceline.errors import BadRequest, ModelError, Unsupported
from paceline.plan import CAPABILITIES
from paceline.testing import TabularModel, random_table

from .conftest import Run

FIELDS = {"name", "kind", "guarantee", "needs", "options", "paper", "year", "summary"}


def test_methods_as_json(run: Run) -> None:
    found = json.loads(run("methods", "--json").stdout)
    assert all(set(m) == FIELDS for m in found)
    assert {m["kind"] for m in found} == {"controller", "drafter", "policy", "tree", "verifier", "view"}
    drafters = json.loads(run("methods", "--json", "--kind", "drafter").stdout)
    assert drafters == [m for m in found if m["kind"] == "drafter"]


def test_needs_are_described_and_true() -> None:
    """What a class says of itself agrees with its registration."""
    for found in registry.methods():
        assert found.needs <= CAPABILITIES.keys(), found.name
        if found.kind == "view":
            assert "views" in found.needs
        if found.kind == "verifier":
            assert ("chain" in found.needs) == (found.cls.shapes == {"chain"}), found.name
            undrawn = {"shared", "fixed"} & {*found.cls.judges}
            assert ("draft_law" in found.needs) == (not undrawn), found.name


@pytest.mark.parametrize(
    ("kind", "name", "needs"),
    [
        ("drafter", "rest", {"datastore"}),
        ("drafter", "quantised", {"low_bits"}),
        ("drafter", "lexical", {"placeholder"}),
        ("verifier", "lexical", {"placeholder"}),
        ("verifier", "lantern", {"embeddings"}),
        ("drafter", "draft", {"second_model"}),
        ("drafter", "translate", {"second_model", "tokenizers"}),
        ("drafter", "rapid", set()),
        ("drafter", "easyspec", {"views"}),
        ("drafter", "swift", {"views"}),
        ("drafter", "del", {"views", "hidden_states"}),
    ],
)
def test_what_a_method_needs(kind: str, name: str, needs: set[str]) -> None:
    assert registry.find(kind, name).needs == needs


@pytest.mark.parametrize("found", [m for m in registry.methods("drafter") if "views" in m.needs], ids=lambda m: m.name)
def test_who_needs_views_refuses_a_model_without(found: registry.Method) -> None:
    model = TabularModel(random_table(5), 5)
    model.offers = model.offers - {"views"}
    with pytest.raises(Unsupported, match="does not offer views"):
        found.cls().attach(model)


def test_methods_as_a_table(run: Run) -> None:
    result = run("methods")
    assert result.exit_code == 0
    for word in ("ngram", "coupled", "temperature", "lossless"):
        assert word in result.stdout


def test_a_method_is_shown_with_its_options(run: Run) -> None:
    shown = run("methods", "ngram").stdout
    assert "ngram(max_ngram=4, min_ngram=1, length=16," in shown
    assert "length: most tokens of a draft." in shown
    assert "rest(datastore=...," in run("methods", "rest").stdout
    both = [line.split(",")[0] for line in run("methods", "sequoia").stdout.splitlines() if "lossless:" in line]
    assert both == ["tree", "verifier"]


def test_the_options_shown_build_the_default_method() -> None:
    for found in registry.methods():
        # Lists of token ids have no place in a spec.
        if not registry.required(found) and "()" not in spelled(found):
            built, default = registry.build(found.kind, spelled(found)), found.cls()
            for name in registry.fields(found):
                assert str(getattr(built, name)) == str(getattr(default, name))


def test_explain_prints_the_plan_or_the_reason(run: Run, tiny: str) -> None:
    result = run("explain", "-m", tiny, "-d", "ngram", "-t", "0.7", "--top-p", "0.9")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "target",
        "policy",
        "drafter",
        "verifier",
        "guarantee",
    ]
    found = json.loads(run("explain", "-m", tiny, "--json").stdout)
    assert found["guarantee"] == "lossless"
    refused = run("explain", "-m", tiny, "-d", "recycling", "--verifier", "rejection")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1


def test_doctor(run: Run, tiny: str) -> None:
    found = json.loads(run("doctor", "-m", tiny, "--json").stdout)
    assert list(found["pass_seconds"]) == ["1", "2", "4", "6", "8", "10", "12", "16", "20", "24", "32"]
    assert found["bandwidth_bytes_per_second"]["1"] > 1e8
    shown = run("doctor", "-m", tiny)
    assert shown.exit_code == 0
    for word in ("bandwidth", "GB/s", "of one row", "•"):
        assert word in shown.stdout


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"paceline {__version__}\n"
    for command in ("generate", "explain", "methods", "bench", "demo", "doctor", "train"):
        assert command in run("--help").stdout
        assert run(command, "--help").exit_code == 0


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, paceline.cli; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_typo_in_the_command(run: Run) -> None:
    result = run("generat")
    assert result.exit_code == 2
    assert "Did you mean 'generate'" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest("argument"), 2),
        (Unsupported("combination"), 2),
        (ModelError("weights"), 1),
        (RuntimeError("two\nlines"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    app = typer.Typer(cls=Guarded)
    app.callback()(lambda: None)

    @app.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(app, ["fail"])
    assert result.exit_code == code
    assert result.stderr.count("\n") == (0 if code == 130 else 1)


def test_a_closed_pipe_is_no_error() -> None:
    code = (
        "import typer; from paceline.commands.guard import Guarded\n"
        "app = typer.Typer(cls=Guarded)\n"
        "app.callback()(lambda: None)\n"
        "app.command('talk')(lambda: [print('x' * 1000) for _ in range(1000)])\n"
        "app(['talk'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
