"""Speed-ups, spreads, modes and equality on made-up samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.errors import BadRequest
from paceline.evaluation.equality import first_difference, repetition
from paceline.evaluation.measures import acceptance, quartiles, stats_json
from paceline.evaluation.plot import draw
from paceline.evaluation.report import Report, SizeInfo, differences, markdown, mode_note, sections
from paceline.evaluation.samples import Sample
from paceline.evaluation.summary import ALL, OWN_PLAIN, PEER_BEST, PEER_PLAIN, Modes, compare, summarise
from paceline.evaluation.timing import modes, same_mode
from paceline.requests import Stats

SLOW, FAST = 37e9, 65e9


def sample(method: str, seconds: float, prompt: str = "p", bandwidth: float = SLOW, **changes: object) -> Sample:
    side, _, name = method.partition(" ")
    fields: dict[str, object] = {
        "size": "100m",
        "workload": "code",
        "prompt": prompt,
        "repeat": 0,
        "side": side,
        "method": name,
        "seconds": seconds,
        "first": 0.1,
        "decoded": 9,
        "tokens": [list(range(10))],
        "bandwidth": bandwidth,
        "stable": True,
    }
    return Sample(**(fields | changes))  # type: ignore[arg-type]


def test_modes_are_groups_of_like_bandwidths() -> None:
    assert same_mode(36e9, 40e9)
    assert not same_mode(SLOW, FAST)
    assert modes([SLOW, FAST, 36e9, 64e9]) == [[36e9, SLOW], [64e9, FAST]]
    assert modes([]) == []
    assert modes([SLOW] * 20 + [20e9]) == [[SLOW] * 20]


def test_modes_have_names() -> None:
    found = Modes([sample("paceline none", 1), sample("paceline none", 1, bandwidth=FAST)])
    assert found.names == ["S", "F"]
    assert found.of(sample("paceline none", 1, bandwidth=FAST)) == "F"
    assert found.of(sample("paceline none", 1, stable=False)) is None
    assert Modes([sample("paceline none", 1)]).names == ["one"]
    assert Modes([]).names == []


def test_on_a_busy_machine_disturbed_runs_count_and_it_is_said(report: Report) -> None:
    assert "0 of 48 runs left out" in mode_note(report)
    for found in report.samples[:30]:
        found.stable = False
    assert "THE MACHINE WAS BUSY: 30 of 48" in mode_note(report)
    assert report.rows()[0].rate["one"].n == 3


def test_only_equal_prompts_in_equal_modes_are_compared() -> None:
    mine = [
        sample("paceline ngram", 1.0, "a"),
        sample("paceline ngram", 2.0, "b"),
        sample("paceline ngram", 1.0, "c"),
        sample("paceline ngram", 0.1, "a", stable=False),
    ]
    others = [
        sample("transformers plain", 3.0, "a"),
        sample("transformers plain", 5.0, "a"),
        sample("transformers plain", 4.0, "b"),
        sample("transformers plain", 9.0, "c", bandwidth=FAST),
    ]
    found = compare(mine, others, Modes([*mine, *others]))
    assert found is not None
    assert found.ratio.n == 2
    assert (found.ratio.low, found.ratio.median, found.ratio.high) == pytest.approx((2.5, 3.0, 3.5))
    assert found.totals == pytest.approx(8 / 3)
    assert compare(mine[2:3], others, Modes([*mine, *others])) is None


def test_the_summary_measures_against_three_baselines() -> None:
    samples = [
        sample("paceline none", 2.0),
        sample("paceline ngram", 1.0, stats=vars(stats())),
        sample("transformers plain", 4.0),
        sample("transformers prompt lookup", 3.0),
    ]
    rows = summarise(samples, {"100m": SLOW / 20}, Modes(samples))
    row = next(r for r in rows if r.method == "ngram")
    assert row.best_peer == "prompt lookup"
    assert {name: s.ratio.median for name, s in row.speed_up.items()} == {
        OWN_PLAIN: 2.0,
        PEER_PLAIN: 4.0,
        PEER_BEST: 3.0,
    }
    assert row.rate["one"].median == 10.0
    assert row.bound["one"] == pytest.approx(20)
    assert row.tokens_per_pass == 2.5
    assert row.shares is not None
    assert row.shares["score"] == pytest.approx(0.5)


def test_all_workloads_get_a_row_together() -> None:
    samples = [sample("paceline none", 2.0), sample("paceline none", 1.0, workload="json")]
    rows = summarise(samples, {"100m": 1.0}, Modes(samples))
    assert [(r.workload, r.samples) for r in rows] == [("code", 1), ("json", 1), (ALL, 2)]


def stats() -> Stats:
    return Stats(
        forward_passes=4,
        tokens=10,
        drafted=12,
        accepted=6,
        drafted_at=[4, 4, 4],
        accepted_at=[3, 2, 1],
        histogram=[1, 1, 1, 1],
        prefill=0.1,
        draft=0.2,
        score=0.5,
        judge=0.1,
        keep=0.05,
        other=0.05,
    )


def test_measures() -> None:
    found = stats_json(stats())
    assert acceptance(stats()) == [0.75, 0.5, 0.25]
    assert found["mean_acceptance_length"] == 2.5
    assert found["mean_accepted_drafts"] == 1.5
    assert found["tokens_per_pass"] == 2.5
    assert quartiles([4.0]) == (4.0, 4.0, 4.0)
    assert quartiles([1.0, 2.0, 3.0]) == (1.5, 2.0, 2.5)
    with pytest.raises(ValueError, match="nothing"):
        quartiles([])


def test_equality() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert repetition(list(range(50))) == 0
    assert repetition([1, 2] * 25) > 0.9
    assert repetition([1, 2]) == 0


@pytest.fixture
def report() -> Report:
    methods = {
        "paceline none": 2.0,
        "paceline ngram": 1.0,
        "transformers plain": 4.0,
        "transformers prompt lookup": 3.0,
    }
    samples = [
        sample(name, seconds * (1 + i / 10), prompt=str(i), size=size, workload=workload)
        for size in ("pocket", "100m")
        for workload in ("code", "json")
        for i in range(3)
        for name, seconds in methods.items()
    ]
    same = {"equal": 3, "of": 3, "first": None, "largest_gap": None}
    where = {"prompt": "1", "position": 7, "ours": 1, "theirs": 2, "gap": 0.001}
    differ = {"equal": 2, "of": 3, "first": where, "largest_gap": 0.001}
    checks = {name: {OWN_PLAIN: same, PEER_PLAIN: differ if name == "paceline none" else same} for name in methods}
    infos = {
        "pocket": SizeInfo("pocket", False, 9_000_000, 18_000_000, "bfloat16", "fused", 40_000_000, 20_000_000),
        "100m": SizeInfo("100m, inflated", True, 91_000_000, 182_000_000, "bfloat16", "fused", 10, 10),
    }
    identical = {size: dict.fromkeys(("code", "json"), checks) for size in infos}
    settings = {"model": "pocket-code", "batch": 1, "max_new_tokens": 10, "temperature": 0.0}
    return Report(settings, sizes=infos, samples=samples, identical=identical, skipped={"draft": "no such model"})


def test_a_report_survives_its_file(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "report.json")
    again = Report.read(tmp_path / "report.json")
    assert again == report
    assert [vars(row) for row in again.rows()] == [vars(row) for row in report.rows()]


def test_files_that_are_no_report(tmp_path: Path) -> None:
    for text in ("", "{}", '{"format": 99}', "[1]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(BadRequest, match=r"x\.json"):
            Report.read(tmp_path / "x.json")


def test_tables(report: Report) -> None:
    found = list(sections(report))
    assert [(s.size, s.workload) for s in found] == [
        (size, workload) for size in ("pocket", "100m") for workload in ("code", "json", ALL)
    ]
    assert found[0].lines[1][0] == "paceline ngram"
    assert found[0].lines[1][3:6] == ("2.00", "4.00", "3.00")
    assert found[0].lines[0][-1] == "3/3 2/3"
    assert found[2].lines[0][-1] == "6/6 4/6"
    assert found[0].lines[1][-1] == "yes"
    page = markdown(report)
    assert "100m, inflated: json" in page
    assert "costs what a model of that size costs" in page
    assert "- Left out: draft: no such model." in page
    sentences = list(differences(report))
    assert len(sentences) == 4
    assert all("transformers plain" in sentence for sentence in sentences)
    assert "at token 7; the two best logits are 0.001 apart there" in sentences[0]


def test_pictures(report: Report, tmp_path: Path) -> None:
    for name in ("plot.png", "plot.svg"):
        draw(report, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
    with pytest.raises(BadRequest, match=r"must end in \.png"):
        draw(report, tmp_path / "plot.txt")
    with pytest.raises(BadRequest, match="no samples"):
        draw(Report({"model": "x"}), tmp_path / "plot.png")
