"""`paceline generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline import Engine

from .conftest import TEXT, Run

FAST = ("--max-new-tokens", "12", "--dtype", "float32")


@pytest.fixture(scope="module")
def expected(tiny: str) -> str:
    engine = Engine.load(tiny, dtype="float32", drafter="none")
    return str(engine.generate(TEXT, max_new_tokens=12).text)


@pytest.mark.parametrize("drafter", ["none", "ngram", "recycling"])
def test_the_text_is_the_engines(run: Run, tiny: str, expected: str, drafter: str) -> None:
    result = run("generate", TEXT, "-m", tiny, "-d", drafter, *FAST)
    assert result.exit_code == 0, result.output
    assert result.stdout == expected + "\n"
    assert result.stderr == ""


def test_a_prompt_comes_from_a_file_or_standard_input(run: Run, tiny: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT)
    assert run("generate", "--file", str(tmp_path / "prompt.txt"), "-m", tiny, *FAST).stdout == expected + "\n"
    assert run("generate", "-m", tiny, *FAST, stdin=TEXT).stdout == expected + "\n"
    assert run("generate", "-", "-m", tiny, *FAST, stdin=TEXT).stdout == expected + "\n"


def test_line_ends_of_a_prompt_stay_as_they_are(run: Run, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"a = 1\r\nb = 2\r")
    shown = run("generate", "--echo", "--file", str(tmp_path / "prompt.txt"), "-m", tiny, *FAST).stdout_bytes
    assert shown.startswith(b"a = 1\r\nb = 2\r")
    assert run("generate", "--echo", "-m", tiny, *FAST, stdin=b"a = 1\r\nb = 2\r").stdout_bytes == shown


def test_options_of_sampling_without_effect_are_named(run: Run, tiny: str) -> None:
    said = run("generate", TEXT, "-m", tiny, "--top-p", "0.9", "--n", "2", *FAST).stderr
    assert said == "note: greedy decoding leaves --top-p, --n without effect; see --temperature\n"
    assert run("generate", TEXT, "-m", tiny, "--top-p", "0.9", "-t", "0.5", *FAST).stderr == ""
    assert run("explain", "-m", tiny, "--min-p", "0.1").stderr.startswith(
        "note: greedy decoding leaves --min-p without"
    )


def test_json_has_text_tokens_reason_and_stats(run: Run, tiny: str, expected: str) -> None:
    found = json.loads(run("generate", TEXT, "-m", tiny, "--json", "--logprobs", "2", *FAST).stdout)
    assert found["text"] == expected
    assert len(found["tokens"]) == 12 == found["stats"]["tokens"] == len(found["logprobs"])
    assert found["finish_reason"] == "length"
    assert found["stats"]["mean_acceptance_length"] >= 1
    assert len(found["logprobs"][0]["top"]) == 2


def test_json_of_several_samples(run: Run, tiny: str) -> None:
    found = json.loads(run("generate", TEXT, "-m", tiny, "--json", "--n", "2", "-t", "1", *FAST).stdout)
    assert len(found["samples"]) == 2
    assert found["samples"][0]["tokens"] != found["samples"][1]["tokens"]


def test_several_samples_are_printed_one_after_the_other(run: Run, tiny: str) -> None:
    result = run("generate", TEXT, "-m", tiny, "--n", "2", "-t", "1", "--stats", *FAST)
    assert "--- 1 of 2 ---" in result.stdout
    assert "--- 2 of 2 ---" in result.stdout
    assert "24 tokens" in result.stderr
    listed = run("generate", TEXT, "-m", tiny, "--n", "2", "--logprobs", "1", *FAST)
    assert listed.stdout.count("alternatives") == 2


def test_equal_seeds_give_equal_texts(run: Run, tiny: str) -> None:
    words = ("generate", TEXT, "-m", tiny, "-t", "0.9", "--top-p", "0.9", "--policy", "top_k(40)", *FAST)
    first, again, third = (
        run(*words, "--seed", seed, "-d", d) for seed, d in (("1", "none"), ("1", "ngram"), ("2", "none"))
    )
    assert first.stdout == again.stdout != third.stdout


def test_echo_and_stop(run: Run, tiny: str, expected: str) -> None:
    assert run("generate", TEXT, "-m", tiny, "--echo", *FAST).stdout == TEXT + expected + "\n"
    stop = expected[3:5]
    assert run("generate", TEXT, "-m", tiny, "--stop", stop, *FAST).stdout == expected[: expected.index(stop)] + "\n"


def test_a_prediction_saves_passes_and_leaves_the_text(run: Run, tmp_path: Path) -> None:
    words = ("generate", "def add(a, b):", "-d", "none", "--json", *FAST)
    plain = json.loads(run(*words).stdout)
    (tmp_path / "expected.txt").write_text(plain["text"])
    told = json.loads(run(*words, "--prediction", str(tmp_path / "expected.txt")).stdout)
    assert told["tokens"] == plain["tokens"]
    assert told["stats"]["forward_passes"] < plain["stats"]["forward_passes"]


def test_a_view_is_run_and_named(run: Run, tiny: str, expected: str, tmp_path: Path) -> None:
    neutral = run("generate", TEXT, "-m", tiny, "--view", "unified(speedup=1)", *FAST)
    assert neutral.stdout == expected + "\n"
    found = json.loads(run("explain", "-m", tiny, "--view", "unified(speedup=1)", "--json").stdout)
    assert found["guarantee"] == "lossy"
    (tmp_path / "expected.txt").write_text(expected)
    shown = run("explain", "-m", tiny, "-d", "ngram", "--prediction", str(tmp_path / "expected.txt")).stdout
    assert "drafter   prediction" in shown


def test_statistics_go_to_standard_error(run: Run, tiny: str, expected: str) -> None:
    result = run("generate", TEXT, "-m", tiny, "--stats", *FAST)
    assert result.stdout == expected + "\n"
    for word in ("tokens/s", "passes", "prefill", "overhead", "cache"):
        assert word in result.stderr


def test_logprobs_are_listed(run: Run, tiny: str) -> None:
    result = run("generate", TEXT, "-m", tiny, "--logprobs", "1", *FAST)
    assert "alternatives" in result.stdout
    assert result.stdout.count("-") >= 12


@pytest.mark.parametrize("drafter", ["ngram", "recycling"])
def test_drafts_are_marked_without_colours(run: Run, tiny: str, expected: str, drafter: str) -> None:
    """Without the marks, and without what was rejected, the text is the plain one."""
    result = run("generate", TEXT * 4, "-m", tiny, "-d", drafter, "--show-drafts", *FAST)
    plain = run("generate", TEXT * 4, "-m", tiny, *FAST).stdout
    legend, _, shown = result.stdout.partition("\n\n")
    assert legend.startswith("drafts: {+accepted+}  bonus  [-rejected-]")
    assert "{+" in shown or "[-" in shown
    assert strip_marks(shown) == plain


def strip_marks(text: str) -> str:
    while "[-" in text:
        before, _, rest = text.partition("[-")
        text = before + rest.partition("-]")[2]
    return text.replace("{+", "").replace("+}", "")
