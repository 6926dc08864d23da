"""Speed-ups, spreads, modes and equality on made-up samples."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from paceline.errors import BadRequest
from paceline.evaluation.equality import first_difference, repetition
from paceline.evaluation.figures import pictures, png, svg
from paceline.evaluation.markdown import markdown
from paceline.evaluation.measures import acceptance, quartiles, stats_json
from paceline.evaluation.page import html
from paceline.evaluation.plot import draw
from paceline.evaluation.report import Report, SizeInfo
from paceline.evaluation.samples import Sample
from paceline.evaluation.sentences import differences, missing, mode_note
from paceline.evaluation.summary import ALL, OWN_PLAIN, PEER_BEST, PEER_PLAIN, Modes, compare, summarise
from paceline.evaluation.tables import COLUMNS, Section, boards, label, same_text, sections, who
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
    assert "0 of 96 runs left out" in mode_note(report)
    for found in report.samples[:60]:
        found.stable = False
    assert "THE MACHINE WAS BUSY: 60 of 96" in mode_note(report)
    assert report.rows()[0].rate["one"].n == 3


def column(section: Section, line: int, head: str) -> str:
    heads = [c.head for c in COLUMNS]
    return section.cells(section.rows[line])[heads.index(head)][0]


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


def test_all_workloads_stand_together_also_where_one_of_them_is_missing() -> None:
    samples = [sample("paceline none", 2.0), sample("paceline none", 1.0, workload="json")]
    samples.append(sample("paceline none", 3.0, temperature=0.8))
    rows = summarise(samples, {"100m": 1.0}, Modes(samples))
    assert [(r.temperature, r.workload) for r in rows] == [
        (0, "code"),
        (0, "json"),
        (0, ALL),
        (0.8, "code"),
        (0.8, ALL),
    ]


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
        sample(
            name,
            seconds * (1 + i / 10),
            prompt=str(i),
            size=size,
            workload=workload,
            temperature=temperature,
            growth=5_000_000,
            stats=vars(stats()) if name.startswith("paceline") else None,
        )
        for size in ("pocket", "100m")
        for workload in ("code", "json")
        for temperature in (0.0, 0.8)
        for i in range(3)
        for name, seconds in methods.items()
    ]
    same = {"equal": 3, "of": 3, "first": None, "largest_gap": None}
    where = {"prompt": "1", "position": 7, "ours": 1, "theirs": 2, "gap": 0.001}
    differ = {"equal": 2, "of": 3, "first": where, "largest_gap": 0.001}
    greedy = {name: {OWN_PLAIN: same, PEER_PLAIN: differ if name == "paceline none" else same} for name in methods}
    sampled = {name: {OWN_PLAIN: same} for name in methods if name.startswith("paceline")}
    infos = {
        "pocket": SizeInfo("pocket", False, 9_000_000, 18_000_000, "bfloat16", "fused", 40_000_000, 20_000_000),
        "100m": SizeInfo("100m, inflated", True, 91_000_000, 182_000_000, "bfloat16", "fused", 10, 10, {"ngram": 7}),
    }
    checks = {"0": dict.fromkeys(("code", "json"), greedy), "0.8": dict.fromkeys(("code", "json"), sampled)}
    settings = {
        "model": "pocket-code",
        "sizes": list(infos),
        "batch": 1,
        "max_new_tokens": 10,
        "temperatures": [0.0, 0.8],
    }
    about = {"guarantee": "lossless", "summary": "Copies <text>.", "paper": "Prompt Lookup Decoding", "year": "2023"}
    return Report(
        settings,
        sizes=infos,
        samples=samples,
        identical=dict.fromkeys(infos, checks),
        skipped={"draft (pocket)": "no such model"},
        planned={name: {"code": 3, "json": 3} for name in infos},
        methods={"ngram": about},
    )


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
    assert [(s.board.size, s.temperature, s.workload) for s in found] == [
        (size, temperature, workload)
        for size in ("pocket", "100m")
        for temperature in (0.0, 0.8)
        for workload in (ALL, "code", "json")
    ]
    names = ["ngram", "plain", "transformers prompt lookup", "transformers plain"]
    assert [label(who(row)) for row in found[1].rows] == names
    heads = ("× plain", "× HF plain", "× HF best", "per pass", "kept", "memory MB", "runs")
    assert [column(found[1], 0, head) for head in heads] == ["2.00", "4.00", "3.00", "2.50", "75%", "45", "3"]
    assert column(found[0], 0, "runs") == "6"
    assert [same_text(row, report) for row in found[1].rows] == ["yes", "3/3 2/3", "yes", "yes"]
    assert same_text(found[0].rows[1], report) == "6/6 4/6"
    sampled = [same_text(row, report) for row in found[4].rows]
    assert sampled == ["yes", "yes", "", ""]  # transformers' samples are other texts
    report.methods["ngram"]["guarantee"] = "lossy"
    assert same_text(found[1].rows[0], report) == "lossy 3/3 3/3"


def test_a_page_of_markdown(report: Report) -> None:
    report.provenance |= {"argv": ["bench", "--drafters", "all,draft(length=4)"], "date": "2025-03-04T05:06:07+00:00"}
    page = markdown(report, {"pocket": [("Speed-up", "page-pocket-speed-up.png")]})
    assert "04 March 2025, 05:06 UTC" in page
    assert "paceline bench --drafters 'all,draft(length=4)'" in page
    assert "### 100m, inflated: all workloads, temperature 0.8" in page
    assert "<details><summary>100m, inflated: json, greedy</summary>" in page
    assert "costs what a model of that size costs" in page
    assert "![Speed-up](page-pocket-speed-up.png)" in page
    assert "- left out: draft (pocket): no such model." in page
    sentences = list(differences(report))
    assert len(sentences) == 4
    assert all("transformers plain" in sentence for sentence in sentences)
    assert "at token 7; the two best logits are 0.001 apart there" in sentences[0]


def test_what_the_budget_left_undone_is_said(report: Report) -> None:
    assert not list(missing(report))
    report.planned["100m"] = {"code": 3, "json": 9}
    report.settings["sizes"].append("500m")
    report.samples.remove(next(s for s in report.samples if s.key[-2:] == ("paceline", "ngram") and s.size == "100m"))
    said = [
        "incomplete: 100m, greedy: code 2 to 3 of 3, json 3 of 9 runs of each method",
        "incomplete: 100m, temperature 0.8: json 3 of 9 runs of each method",
    ]
    assert list(missing(report)) == [*said, "incomplete: 500m was not measured"]
    assert f"**{said[0]}.**" in markdown(report)
    assert said[1] in html(report)


class Page(HTMLParser):
    """Counts elements, and complains about what is not closed or comes from elsewhere."""

    VOID = ("meta", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        for name, value in attrs:
            assert name != "src"
            assert not (name.endswith("href") and not (value or "").startswith("#"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_a_page_of_html(report: Report) -> None:
    page = Page()
    text = html(report)
    page.feed(text)
    assert not page.open
    assert page.count["table"] == 12
    assert page.count["svg"] == 8
    assert page.count["td"] == 12 * 4 * (len(COLUMNS) + 2)
    assert "Copies &lt;text&gt;." in text
    assert 'data-value="2"' in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_figures(report: Report, tmp_path: Path) -> None:
    board = boards(report)[0]
    found = pictures(board)
    assert [p.name for p in found] == ["speed-up", "tokens-per-pass", "acceptance", "phases"]
    for picture in found:
        drawing = svg(picture)
        ElementTree.fromstring(drawing)
        assert "var(--ink)" in drawing
    png(found[0], tmp_path / "x.png", "pocket")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_figures_of_peers_alone(report: Report) -> None:
    report.samples = [s for s in report.samples if s.side == "transformers" and s.workload == "code"]
    board = boards(report)[0]
    assert board.total == "code"
    assert [p.name for p in pictures(board)] == ["speed-up"]
    assert "<table>" in html(report)


def test_pictures(report: Report, tmp_path: Path) -> None:
    report.samples = [s for s in report.samples if s.size == "100m"]
    draw(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    with pytest.raises(BadRequest, match=r"must end in \.png"):
        draw(report, tmp_path / "plot.txt")
    with pytest.raises(BadRequest, match="no samples"):
        draw(Report({"model": "x"}), tmp_path / "plot.png")
