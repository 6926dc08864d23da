"""The shipped prompts: held out, unique, licensed, and short enough."""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from pathlib import Path

import pytest

from paceline.errors import BadRequest
from paceline.evaluation import workloads
from paceline.evaluation.workloads import SHIPPED, Prompt, load, spread
from paceline.models.loading import POCKET, load_tokenizer
from paceline.training.corpus import HOLD_OUT_PERCENT, is_held_out

PROMPTS = [prompt for found in load(SHIPPED)[0].values() for prompt in found]


def test_there_are_enough_and_no_two_are_the_same() -> None:
    counts = {name: sum(p.category == name for p in PROMPTS) for name in SHIPPED}
    assert counts["code"] >= 24
    assert min(counts.values()) >= 10
    assert len({(p.category, p.name) for p in PROMPTS}) == len({p.text for p in PROMPTS}) == len(PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: f"{p.category}-{p.name}")
def test_a_prompt_names_its_source_and_was_not_trained_on(prompt: Prompt) -> None:
    assert prompt.reference
    if prompt.licence == "Apache-2.0":
        assert prompt.source == "written for Paceline"
        return
    assert prompt.licence == "PSF-2.0"
    match = re.fullmatch(r"CPython [\d.]+, Lib/(\S+), sha256 ([0-9a-f]{64})", prompt.source)
    assert match is not None
    assert int(match[2], 16) % 100 < HOLD_OUT_PERCENT
    path = Path(sysconfig.get_paths()["stdlib"]) / match[1]
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == match[2]:
        assert is_held_out(path)
        if prompt.category == "code":
            assert prompt.text in path.read_text()


def test_the_license_of_quoted_files_ships_too() -> None:
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (workloads.FOLDER / "LICENSE-PYTHON.txt").read_text()


@pytest.mark.skipif(not (POCKET / "pocket-code" / "config.json").exists(), reason="no pocket model here")
def test_prompts_fit_the_pocket_models() -> None:
    tokenizer = load_tokenizer("pocket-code")
    for prompt in PROMPTS:
        assert 40 <= len(tokenizer(prompt.text)["input_ids"]) <= 1024 - 128


def test_a_few_prompts_are_spread_over_all() -> None:
    prompts = [Prompt(str(i), "x", str(i), "", "") for i in range(10)]
    assert [p.name for p in spread(prompts, 3)] == ["0", "3", "6"]
    assert spread(prompts, 20) == spread(prompts, None) == prompts


def test_external_workloads_are_read_or_left_out_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "human_eval.jsonl").write_text(json.dumps({"task_id": "T/0", "prompt": "def f():"}) + "\n")
    record = {"question_id": 81, "turns": ["Write\u2028on.", "More."]}
    (tmp_path / "spec_bench.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n")
    found, missing = load(["humaneval", "spec_bench", "gsm8k"], tmp_path)
    assert [p.text for p in found["humaneval"]] == ["def f():"]
    assert [(p.name, p.text) for p in found["spec_bench"]] == [("81", "Write\u2028on.")]
    assert list(missing) == ["gsm8k"]
    assert "gsm8k_test*.jsonl" in missing["gsm8k"]
    assert list(load(["all"])[0]) == list(SHIPPED)
    assert "--data" in load(["gsm8k"])[1]["gsm8k"]


def test_unusable_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="not a folder"):
        load(["all"], tmp_path / "missing")
    (tmp_path / "gsm8k_test.jsonl").write_text("{}\n")
    with pytest.raises(BadRequest, match="line 1, is no gsm8k record"):
        load(["gsm8k"], tmp_path)
    (tmp_path / "gsm8k_test.jsonl").write_text("not json\n")
    with pytest.raises(BadRequest, match="not JSON lines"):
        load(["gsm8k"], tmp_path)
