"""`paceline bench` and `paceline demo` from end to end, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paceline import registry
from paceline.evaluation import runner, timing
from paceline.models.loading import POCKET

from .conftest import Run, save

WORDS = ("--workloads", "edit,json", "--limit", "1", "--max-new-tokens", "6", "--dtype", "float32")


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may run at the same time, and what the memory does is not at stake here."""
    monkeypatch.setattr(runner, "QUIET", 1000.0)
    monkeypatch.setattr(timing, "PROBE_BYTES", 2**20)
    monkeypatch.setattr(timing.Bandwidth, "measure", lambda self: 40e9)


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("assistant"), 290, seed=5))


def test_a_report_with_every_method_and_peer(run: Run, tiny: str, assistant: str, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "md", "html", "png")}
    drafters = f"ngram,recycling,draft(model='{assistant}')"
    result = run(
        *("bench", "-m", tiny, "--drafters", drafters, "--assistant", assistant, *WORDS),
        *("--json", str(files["json"]), "--markdown", str(files["md"])),
        *("--html", str(files["html"]), "--plot", str(files["png"])),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(files["json"].read_text())
    methods = {(row["side"], row["method"]) for row in report["summary"]}
    assert methods == {
        *(("paceline", name) for name in ("none", "ngram", "recycling", f"draft(model='{assistant}')")),
        *(("transformers", name) for name in ("plain", "prompt lookup", "assisted")),
    }
    assert {row["workload"] for row in report["summary"]} == {"edit", "json", "all"}
    assert len(report["samples"]) == 7 * 2
    for sample in report["samples"]:
        assert [len(tokens) for tokens in sample["tokens"]] == [6]
        assert 0 < sample["first"] <= sample["seconds"]
    for row in report["summary"]:
        checks = row["identical"]
        assert set(checks) == {"paceline plain", "transformers plain"}
        assert all(check["equal"] == check["of"] > 0 for check in checks.values())
        if row["side"] == "paceline":
            assert sum(row["shares"].values()) == pytest.approx(1)
            assert row["tokens_per_pass"] >= 1
    for key in ("paceline", "torch", "transformers", "cpu", "threads", "date"):
        assert report["provenance"][key]
    assert report["modes"]
    page = files["md"].read_text()
    assert "### pocket: all workloads, greedy" in page
    for name in ("speed-up", "tokens-per-pass", "acceptance", "phases"):
        assert f"](report-pocket-{name}.png)" in page
        assert (tmp_path / f"report-pocket-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<table>" in files["html"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "HF lookup" in result.stdout
    again = tmp_path / "again.html"
    assert run("report", str(files["json"]), "--html", str(again)).exit_code == 0
    assert again.read_text() == files["html"].read_text()
    assert "HF lookup" in run("report", str(files["json"])).stdout


def test_a_report_is_continued(run: Run, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    words = ("bench", "-m", tiny, "--drafters", "ngram", "--peers", "none", *WORDS, "--json", str(path))
    assert run(*words, "--budget", "0").exit_code == 0
    report = json.loads(path.read_text())
    assert (report["complete"], report["samples"]) == (False, [])
    result = run("bench", "--resume", str(path))
    report = json.loads(path.read_text())
    assert report["complete"] is True, result.output
    assert len(report["samples"]) == 2 * 2
    assert len(report["provenance"]["resumed"]) == 1
    result = run("bench", "--resume", str(path), "--drafters", "recycling")
    report = json.loads(path.read_text())
    assert len(report["samples"]) == 2 * 3, result.output
    assert report["settings"]["drafters"] == ["ngram", "recycling"]
    wrong = run("bench", "--resume", str(path), "--max-new-tokens", "7")
    assert wrong.exit_code == 2
    assert "max_new_tokens 6, not 7" in wrong.stderr


def test_an_interrupted_run_says_where_its_report_is(
    run: Run, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, measure = tmp_path / "report.json", runner.Arena._measure

    def interrupted(arena: runner.Arena, *rest: Any) -> Any:
        if arena.samples:
            raise KeyboardInterrupt
        return measure(arena, *rest)

    monkeypatch.setattr(runner.Arena, "_measure", interrupted)
    words = ("--drafters", "ngram", "--peers", "none", "--json", str(path))
    result = run("bench", "-m", tiny, *words, *WORDS)
    assert result.exit_code == 130
    assert f"--resume {path} goes on" in " ".join(result.stderr.split())
    assert len(json.loads(path.read_text())["samples"]) == 2


def test_sampling_batches_and_warm_drafters(run: Run, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = run(
        *("bench", "-m", tiny, "--drafters", "recycling", *WORDS, "--limit", "2", "--batch", "2", "-t", "0,0.8"),
        *("--warm", "--peers", "plain,prompt lookup", "--json", str(path)),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert [len(s["tokens"]) for s in report["samples"]] == [2] * len(report["samples"])
    rows = [r for r in report["summary"] if r["method"] == "recycling" and r["workload"] == "all"]
    assert [row["temperature"] for row in rows] == [0, 0.8]
    same = {"equal": 4, "of": 4, "first": None, "largest_gap": None}
    assert rows[0]["identical"] == {"paceline plain": same, "transformers plain": same}
    assert rows[1]["identical"] == {"paceline plain": same}
    assert "transformers prompt lookup" in report["skipped"]


def test_texts_of_different_lengths_that_wait_for_each_other(run: Run, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    words = ("bench", "-m", tiny, "--drafters", "ngram", "--workloads", "edit", "--limit", "3", "--dtype", "float32")
    batch = ("--batch", "3", "--at-once", "2", "--shortest", "3", "--max-new-tokens", "9")
    result = run(*words, *batch, "--json", str(path))
    assert result.exit_code == 0, result.output
    assert "batch 3 (2 at once), 3 to 9 new tokens" in " ".join(result.output.split())
    report = json.loads(path.read_text())
    assert [[len(tokens) for tokens in s["tokens"]] for s in report["samples"]] == [[3, 7, 4]] * 2
    assert all(row["identical"]["paceline plain"]["equal"] == 3 for row in report["summary"])
    assert "equally long" in report["skipped"]["transformers"]
    wrong = run("bench", "--resume", str(path), "--at-once", "1")
    assert "the report has at_once 2, not 1" in " ".join(wrong.stderr.split())


def test_a_view_is_measured_and_marked(run: Run, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    words = ("--drafters", "ngram", "--peers", "none", "--view", "unified(speedup=1)", "--json", str(path))
    result = run("bench", "-m", tiny, *words, *WORDS)
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert {about["guarantee"] for about in report["methods"].values()} == {"lossy"}
    assert "view unified(speedup=1)" in report["sizes"]["pocket"]["label"]
    wrong = run("bench", "--resume", str(path), "--view", "unified(speedup=1.5)")
    assert "view 'unified(speedup=1)', not" in wrong.stderr


def test_texts_of_a_verifier_that_draws_anew_are_not_compared(run: Run, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    words = ("--drafters", "ngram", "--verifier", "rejection", "--peers", "none", "-t", "0.8", "--json", str(path))
    assert run("bench", "-m", tiny, *words, *WORDS).exit_code == 0
    assert all(row["identical"] == {} for row in json.loads(path.read_text())["summary"])


def test_a_drafter_that_does_not_work_here_is_left_out_by_all(run: Run, tiny: str, tmp_path: Path) -> None:
    """The pocket draft has another vocabulary than the tiny model."""
    path = tmp_path / "report.json"
    words = ("--workloads", "json", "--limit", "1", "--max-new-tokens", "4", "--peers", "none")
    others = ",".join(f"-{m.name}" for m in registry.methods("drafter") if m.name not in ("none", "draft", "ngram"))
    result = run("bench", "-m", tiny, *words, "--drafters", f"all,{others}", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert "vocabulary" in json.loads(path.read_text())["skipped"]["draft (pocket)"]


@pytest.mark.skipif(not (POCKET / "pocket-code" / "config.json").exists(), reason="no pocket model here")
def test_demo(run: Run) -> None:
    result = run("demo", "--inflated", "none", "--max-new-tokens", "8", "--rounds", "1")
    assert result.exit_code == 0, result.output
    assert "Identical: all 8 tokens" in result.stdout
    assert "transformers, plain" in result.stdout
