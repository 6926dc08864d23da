"""A user's mistake is one line that names what to change, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline import Engine
from paceline.commands.options import read_prompt
from paceline.errors import BadRequest

from .conftest import Run, save

CASES = {
    "unknown drafter": (["-d", "ngarm"], "did you mean 'ngram'"),
    "unknown option": (["-d", "ngram(lenth=3)"], "ngram: option 'lenth' is unknown"),
    "unknown verifier": (["--verifier", "copled"], "did you mean 'coupled'"),
    "unknown policy": (["--policy", "topp(0.9)"], "did you mean 'top_p'"),
    "unreadable spec": (["-d", "ngram(3"], "')' is missing"),
    "negative temperature": (["-t", "-1"], "temperature: -1.0 is out of range"),
    "no mass": (["-t", "1", "--top-p", "0"], "top_p"),
    "no tokens": (["--max-new-tokens", "0"], "max_new_tokens: 0 is not allowed"),
    "no samples": (["--n", "0"], "n: 0 is not allowed"),
    "negative seed": (["--seed", "-1"], "seed: -1 is not allowed"),
    "empty stop": (["--stop", ""], "an empty string would stop at once"),
    "unknown dtype": (["--dtype", "float8"], "dtype: 'float8' is unknown"),
    "unusable device": (["--device", "meta"], "device: 'meta' is not supported"),
    "a draft beyond the context": (
        ["-d", "recycling(nodes=1000000000)"],
        "(nodes=1000000000): too many to draft; the context",
    ),
    "options for none": (["-d", "none(1)"], "none: 1 values given; its options are none"),
    "drafts of many samples": (["--n", "2", "--show-drafts"], "show-drafts: colours one text"),
    "drafts in an object": (["--json", "--show-drafts"], "show-drafts: colours one text"),
    "unknown device": (["--device", "gpu"], "device: 'gpu' is unknown"),
    "no rows": (["--max-rows", "0"], "max_rows: 0 is not allowed"),
    "not a number": (["--seed", "x"], "valid integer"),
    "unknown view": (["--view", "unfied"], "did you mean 'unified'"),
    "a view that skips too much": (["--view", "unified(speedup=9)"], "unified(speedup=9"),
    "no such prediction": (["--prediction", "/nowhere/text"], "prediction: '/nowhere/text' cannot be read"),
    "no such option": (["--colour"], "No such option"),
    "no such file": (["--file", "/nowhere/prompt.txt"], "given both as an argument and with --file"),
}


def check(result: object, fragment: str, code: int = 2) -> None:
    stderr = result.stderr  # type: ignore[attr-defined]
    assert result.exit_code == code, stderr  # type: ignore[attr-defined]
    assert fragment in stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr


@pytest.mark.parametrize("name", CASES)
def test_bad_options(run: Run, tiny: str, name: str) -> None:
    options, fragment = CASES[name]
    check(run("generate", "def f():", "-m", tiny, *options), fragment)


def test_an_empty_prompt(run: Run, tiny: str) -> None:
    check(run("generate", "", "-m", tiny), "prompt: it is empty")
    check(run("generate", "-m", tiny, stdin=""), "prompt: it is empty")


def test_a_prompt_beyond_the_context(run: Run, tmp_path: Path) -> None:
    small = str(save(tmp_path / "small", 270, seed=0, context=32))
    check(run("generate", "x " * 40, "-m", small), "exceed the context of 32")


def test_a_prompt_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    check(run("generate", "--file", str(tmp_path / "missing")), "cannot be read")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    check(run("generate", "--file", str(tmp_path / "bytes")), "cannot be read")
    check(run("generate", stdin=b"caf\xe9"), "standard input cannot be read")
    check(run("generate", "caf\udce9"), "the argument cannot be read")


def test_no_prompt_and_a_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(BadRequest, match="prompt: none given"):
        read_prompt(None, None)


def test_models_that_are_none(run: Run, tmp_path: Path) -> None:
    check(run("generate", "x", "-m", str(tmp_path)), "holds no model")
    check(run("generate", "x", "-m", str(tmp_path / "missing")), "there is no folder")
    check(run("generate", "x", "-m", "poket-code"), "'poket-code' is no pocket model")


def test_a_draft_model_with_another_vocabulary(run: Run, tiny: str, other: str) -> None:
    check(
        run("generate", "x", "-m", tiny, "-d", f"draft(model='{other}')"), "a draft model needs the target's vocabulary"
    )


def test_a_combination_that_cannot_work(run: Run, tiny: str) -> None:
    check(run("generate", "x", "-m", tiny, "-d", "recycling", "--verifier", "rejection"), "drafts a tree")


def test_a_traceback_on_request(run: Run, tiny: str) -> None:
    result = run("generate", "x", "-m", tiny, "--max-new-tokens", "0", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: max_new_tokens" in result.stderr


@pytest.mark.parametrize("stop", [3, ["a", 3], [""], b"x"])
def test_stops_of_the_wrong_type(tiny: str, stop: object) -> None:
    engine = Engine.load(tiny, drafter="none")
    with pytest.raises(BadRequest, match="stop: "):
        engine.generate("x", stop=stop)


@pytest.mark.parametrize("content", ["{}", "[1]", "text", b"\xff\x00"])
def test_files_that_are_no_reports(run: Run, tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check(run("report", str(path)), "is no benchmark report: `paceline bench --json FILE` writes one")
    check(run("bench", "--resume", str(path)), "is no benchmark report")
    check(run("report", str(tmp_path)), "is no benchmark report: Is a directory")


def test_policies_of_the_wrong_type(tiny: str) -> None:
    engine = Engine.load(tiny, drafter="none")
    for policies in (3, [3]):
        with pytest.raises(BadRequest, match="polic"):
            engine.generate("x", policies=policies)


def test_bench_mistakes(run: Run, tiny: str, tmp_path: Path) -> None:
    check(run("bench", "-m", tiny, "--workloads", "cod"), "did you mean 'code'")
    check(run("bench", "-m", tiny, "--workloads", ""), "workloads: none given; all, code")
    check(run("bench", "-m", tiny, "--sizes", "pocket,1b"), "sizes: '1b' is unknown; pocket, 100m, 500m are allowed")
    check(run("bench", "-m", tiny, "--drafters", "-ngram"), "'ngram' cannot be left out of none; name some, or all")
    check(run("bench", "-m", tiny, "--limit", "0"), "limit: 0 is not allowed")
    check(run("bench", "-m", tiny, "--repeats", "0"), "repeats: 0 is not allowed")
    check(run("bench", "-m", tiny, "--resume", str(tmp_path / "missing.json")), "is no benchmark report")
    check(run("bench", "-m", tiny, "-t", "0;1"), "is not a comma list of numbers")
    check(run("bench", "-m", tiny, "-t", "-1"), "temperature: -1.0 is out of range")
    check(run("bench", "-m", tiny, "--peers", "assist"), "did you mean 'assisted'")
    check(run("bench", "-m", tiny, "--least", "2"), "least: 2.0 is not allowed")
    check(run("bench", "-m", tiny, "--at-once", "2"), "at_once: 2 is of batches, and batch is 1")
    check(run("bench", "-m", tiny, "--batch", "4", "--at-once", "5"), "at_once: 5 is not allowed; 1 to 4 is")
    check(run("bench", "-m", tiny, "--batch", "4", "--shortest", "0"), "shortest: 0 is not allowed; 1 to 128 is")
    check(run("bench", "-m", tiny, "--threads", "0"), "threads: 0 is not allowed")
    check(run("bench", "-m", tiny, "--data", str(tmp_path / "missing")), "is not a folder")
    check(run("bench", "-m", tiny, "--json", str(tmp_path / "no" / "file.json")), "json: there is no folder")
    check(run("bench", "-m", tiny, "--json", str(tmp_path)), "is a folder; a file is needed")
    check(run("bench", "-m", tiny, "--plot", str(tmp_path / "picture.txt")), "must end in .png")
    check(run("bench", "-m", tiny, "--budget", "nan"), "budget: nan is not allowed")
    check(run("bench", "-m", tiny, "--seed", "-1"), "seed: -1 is not allowed")
    check(run("bench", "-m", tiny, "--policy", "topp(0.9)"), "did you mean 'top_p'")
    check(run("bench", "-m", tiny, "--top-p", "0"), "top_p: 0.0 is out of range")
    check(run("bench", "-m", tiny, "--view", "unfied"), "did you mean 'unified'")
    check(run("bench", "-m", tiny, "--workloads", "gsm8k"), "does not ship with Paceline")
    check(run("bench", "-m", tiny, "--drafters", "nope", "--workloads", "code"), "drafter 'nope' is unknown")
    check(run("methods", "--kind", "drafters"), "kind: 'drafters' is unknown")
    check(run("methods", "ngarm"), "method 'ngarm' is unknown; did you mean 'ngram'?")
    check(run("methods", "--json", "--markdown"), "markdown: there is --json too; give one of them")
