"""Running contestants: order, modes, repeats, peers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paceline import Engine, registry
from paceline.errors import BadRequest
from paceline.evaluation import own, peers, runner, timing
from paceline.evaluation.equality import difference, top_gap
from paceline.evaluation.machine import bandwidths
from paceline.evaluation.memory import Peak
from paceline.evaluation.runner import Arena, Batch, batches, interleaved
from paceline.evaluation.samples import Contestant, Job, Prompts, Run


class Fake(Contestant):
    """Notes when it ran and whether it was to start fresh."""

    side = "paceline"

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def prepare(self, fresh: bool = True) -> None:
        self.log.append(f"{self.name} {'fresh' if fresh else 'warm'}")

    def run(self, prompts: Prompts, job: Job) -> Run:
        self.log.append(f"{self.name} run")
        return Run([[1] * job.max_new_tokens for _ in prompts], 1.0, 0.5, job.max_new_tokens - 1)


def arena(
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
    speeds: Iterator[float],
    fresh: bool = True,
    jobs: tuple[Job, ...] = (Job(4),),
) -> Arena:
    class Probe:
        def __init__(self, device: torch.device) -> None:
            pass

        def measure(self) -> float:
            return next(speeds)

    monkeypatch.setattr(runner, "Bandwidth", Probe)
    monkeypatch.setattr(runner, "QUIET", 1000)
    return Arena("tiny", [Fake(name, log) for name in "abc"], jobs, fresh=fresh)


def forever(value: float) -> Iterator[float]:
    while True:
        yield value


BATCHES = [Batch("code", name, ((1, 2),)) for name in ("x", "y")]


def runs(log: list[str]) -> str:
    """Who ran, in order."""
    return "".join(word[0] for word in log if word.endswith("run"))


def test_plain_decoding_leads_and_the_others_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, forever(40e9))
    assert field.play(BATCHES, repeats=2)
    assert runs(log) == "abcacb" + "acbabc"
    assert [(s.prompt, s.repeat, s.method) for s in field.samples[:4]] == [
        ("x", 0, "a"),
        ("x", 0, "b"),
        ("x", 0, "c"),
        ("y", 0, "a"),
    ]
    assert all(s.stable and s.attempts == 1 for s in field.samples)


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, forever(40e9))
    assert not field.play(BATCHES, 1, deadline=time.monotonic() - 1)
    assert not field.samples
    field.play(BATCHES[:1], 1)
    field.play(BATCHES, 1)
    assert len(field.samples) == 6
    assert len([word for word in log if word.endswith("run")]) == 6


def test_a_prompt_is_run_at_every_temperature_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    field = arena(monkeypatch, [], forever(40e9), jobs=(Job(4), Job(4, 0.8)))
    assert field.play(BATCHES, 1)
    assert [(s.prompt, s.temperature) for s in field.samples[::3]] == [("x", 0), ("x", 0.8), ("y", 0), ("y", 0.8)]


def test_warm_drafters_meet_all_prompts_before_the_next_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    field = arena(monkeypatch, [], forever(40e9), fresh=False, jobs=(Job(4), Job(4, 0.8)))
    assert field.play(BATCHES, 1)
    assert [(s.prompt, s.temperature) for s in field.samples[::3]] == [("x", 0), ("y", 0), ("x", 0.8), ("y", 0.8)]


def test_the_budget_may_end_within_a_round_which_is_then_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, forever(40e9))
    times = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(times))
    assert not field.play(BATCHES[:1], 1, deadline=1.0)
    assert runs(log) == "ab"
    assert field.play(BATCHES[:1], 1)
    assert runs(log) == "abc"


def test_the_fastest_run_first(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, forever(40e9))
    field._pace = {("paceline", "b"): 10.0, ("paceline", "c"): 20.0}
    field.play(BATCHES[:1], 1)
    assert runs(log) == "acb"


def test_who_cannot_do_a_job_or_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, forever(40e9), jobs=(Job(4), Job(4, 0.8)))
    _, choosy, broken = field.contestants
    monkeypatch.setattr(choosy, "refusal", lambda job: "greedy only" if job.temperature else None)
    monkeypatch.setattr(broken, "run", lambda prompts, job: 1 / 0)
    field.warm_up(BATCHES[0])
    assert field.play(BATCHES[:1], 1)
    assert [(s.method, s.temperature) for s in field.samples] == [("a", 0), ("b", 0), ("a", 0.8)]
    assert field.refused["paceline b (tiny, temperature 0.8)"] == "greedy only"
    assert "failed on x: ZeroDivisionError" in field.refused["paceline c (tiny, temperature 0)"]
    monkeypatch.setattr(field.contestants[0], "run", lambda prompts, job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        field.play(BATCHES, 1)


def test_the_slow_are_left_out_after_a_few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, forever(40e9))
    field.least = 0.5
    monkeypatch.setattr(field.contestants[2], "run", lambda prompts, job: Run([[1] * 4], 2.5, 0.5, 3))
    many = [Batch("code", str(i), ((1, 2),)) for i in range(4)]
    assert field.play(many, 1)
    assert [s.method for s in field.samples].count("c") == runner.TRIALS
    assert "slower than 0.5" in field.refused["paceline c (tiny, temperature 0)"]


def test_workloads_are_spread_over_a_run() -> None:
    groups = [[Batch(name, str(i), ()) for i in range(count)] for name, count in (("code", 4), ("json", 2))]
    assert "".join(b.workload[0] for b in interleaved(groups)) == "cjccjc"


def test_a_run_is_repeated_when_the_bandwidth_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    steady = [40e9] * 100
    field = arena(monkeypatch, log, iter([40e9, 70e9, *steady]))
    field.play(BATCHES[:1], 1)
    assert [s.attempts for s in field.samples] == [2, 1, 1]
    assert all(s.stable for s in field.samples)


def test_a_run_beside_other_programs_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, forever(40e9))
    loads = iter([2.0, *[0.0] * 100])
    monkeypatch.setattr(runner, "QUIET", 0.15)
    monkeypatch.setattr(runner.Neighbours, "cores", lambda self: next(loads))
    field.play(BATCHES[:1], 1)
    assert [(s.attempts, s.others, s.stable) for s in field.samples] == [(2, 0.0, True), (1, 0.0, True), (1, 0.0, True)]


def test_other_programs_are_seen() -> None:
    """This process alone is not among the others."""
    watch = timing.Neighbours()
    code = "import time; end = time.time() + 0.6\nwhile time.time() < end: pass"
    busy = subprocess.Popen([sys.executable, "-c", code])
    busy.wait()
    assert watch.cores() > 0.3


def test_runs_in_another_mode_are_repeated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, iter([70e9, 70e9, *[40e9] * 100]))
    field.play(BATCHES[:1], 1)
    assert [s.bandwidth for s in field.samples] == [40e9] * 3
    assert log.count("a run") == 2


def test_it_gives_up_on_a_restless_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, iter([40e9, 70e9] * 50))
    field.play(BATCHES[:1], 1)
    assert not any(s.stable for s in field.samples)
    assert all(s.attempts == runner.ATTEMPTS for s in field.samples)


def test_warm_drafters_keep_what_they_learned_and_never_see_a_prompt_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    field = arena(monkeypatch, log, iter([40e9, 70e9] * 50), fresh=False)
    field.play(BATCHES, 1)
    assert [word for word in log if word.startswith("a")] == ["a fresh", "a warm", "a run", "a warm", "a run"]


def test_batches_are_whole() -> None:
    prompts = [(str(i), [i]) for i in range(5)]
    assert [b.name for b in batches("code", prompts, 2)] == ["0, 1", "2, 3"]
    assert [b.name for b in batches("code", prompts, 9)] == ["0, 1, 2, 3, 4"]
    assert batches("code", prompts, 2)[1].prompts == ((2,), (3,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model without a tokenizer."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=7,
    )
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder, dtype="float32", drafter="none", max_rows=2)


PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]


def test_own_methods_and_peers_give_the_same_tokens_and_equal_work(folder: Path, engine: Engine) -> None:
    module = peers.load_peer(folder, "float32", None, None)
    assistant = peers.load_peer(folder, "float32", None, None)
    field = [*own.methods(engine, ["ngram", "recycling"], "coupled", {})[0], *peers.peers(module, assistant)]
    runs = [contestant.run([PROMPT], Job(24)) for contestant in field]
    assert len({tuple(r.tokens[0]) for r in runs}) == 1
    for r in runs:
        assert len(r.tokens[0]) == 24
        assert 0 < r.first <= r.seconds
        assert 0 < r.decoded < 24


def test_batches_run_together(folder: Path, engine: Engine) -> None:
    module = peers.load_peer(folder, "float32", None, None)
    ours = own.Method(engine, "none").run([PROMPT, PROMPT[:4]], Job(8))
    theirs = peers.peers(module, None)[0].run([PROMPT, PROMPT[:4]], Job(8))
    assert ours.tokens == theirs.tokens
    assert ours.decoded <= 14
    assert theirs.decoded == 14


@pytest.mark.parametrize("count", [1, 3, 16, 100])
def test_lengths_of_a_batch_are_spread_evenly(count: int) -> None:
    lengths = Job(160, shortest=24).lengths(count)
    assert lengths[0] == 24
    assert max(lengths) <= 160
    gaps = np.diff([*sorted(lengths), 160])
    assert gaps.max() <= max(136 / count * 2, 1)
    assert Job(160).lengths(count) == [160] * count


def test_texts_of_a_batch_end_at_their_lengths(engine: Engine) -> None:
    """Two at a time, so that the third begins where the first ended."""
    job = Job(20, shortest=4)
    run = own.Method(engine, "ngram").run([PROMPT, PROMPT[1:], PROMPT[2:]], job)
    assert [len(tokens) for tokens in run.tokens] == job.lengths(3)
    alone = own.Method(engine, "none").run([PROMPT[2:]], Job(job.lengths(3)[2]))
    assert run.tokens[2] == alone.tokens[0]


def test_a_fresh_drafter_has_learned_nothing(engine: Engine) -> None:
    method = own.Method(engine, "recycling")
    method.run([PROMPT], Job(8))
    kept = method.part
    method.prepare(fresh=False)
    assert method.part is kept
    method.prepare()
    assert (method.part.table == -1).all()  # type: ignore[attr-defined]


def test_fresh_drafters_share_models(engine: Engine, folder: Path) -> None:
    method = own.Method(engine, f"turns(first=recycling, second=draft(model='{folder}'))")
    first = method.part
    method.run([PROMPT], Job(8))
    method.prepare()
    (table, draft), (new_table, new_draft) = first.members, method.part.members  # type: ignore[attr-defined]
    assert new_draft is not draft
    assert new_draft._model is draft._model
    assert (table.table != -1).any()
    assert (new_table.table == -1).all()


def only(*names: str) -> list[str]:
    """All drafters but those not named."""
    return ["all", *(f"-{m.name}" for m in registry.methods("drafter") if m.name not in ("none", *names))]


def test_drafters_that_do_not_work_here_are_left_out_of_all_with_the_reason(engine: Engine) -> None:
    found, skipped = own.methods(engine, only("ngram", "recycling", "prediction", "rest"), "rejection", {})
    assert [method.name for method in found] == ["none", "ngram"]
    assert "drafts a tree" in skipped["recycling"]
    assert "`prediction=`" in skipped["prediction"]
    assert "drafter 'rest' needs datastore" in skipped["rest"]
    with pytest.raises(BadRequest, match="unknown"):
        own.methods(engine, ["nothing"], "coupled", {})


def test_all_may_be_widened_and_narrowed() -> None:
    assert own._chosen([*only("ngram", "suffix"), "ngram(length=4)"]) == ["none", "ngram", "suffix", "ngram(length=4)"]
    with pytest.raises(BadRequest, match="cannot be left out"):
        own._chosen(["ngram", "-suffix"])


def test_a_run_that_fails_leaves_nothing_in_the_decoder(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    method = own.Method(engine, "ngram")
    monkeypatch.setattr(type(method.part), "commit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method.run([PROMPT, PROMPT], Job(8))
    assert not engine.decoder.busy


def test_what_a_drafter_keeps_is_found_wherever_it_holds_it(engine: Engine) -> None:
    class Holder:
        def __init__(self) -> None:
            self.parts = {"inner": [self, engine.model]}

    assert list(own._heavy(Holder(), set())) == [engine.model]


def test_the_modes_of_transformers_are_chosen_by_name() -> None:
    assert peers.chosen(("all",)) == list(peers.NAMES)
    assert peers.chosen(("none",)) == []
    assert peers.chosen(("assisted", "plain")) == ["plain", "assisted"]
    with pytest.raises(BadRequest, match="did you mean 'assisted'"):
        peers.chosen(("asisted",))


def test_a_peers_assistant_needs_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    module = peers.load_peer(folder, "float32", None, None)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(BadRequest, match="vocabulary"):
        peers.peers(module, peers.load_peer(tmp_path, "float32", None, None))


def test_the_gap_is_that_of_the_two_best_logits(engine: Engine, folder: Path) -> None:
    module = LlamaForCausalLM.from_pretrained(folder)
    best, second = module(torch.tensor([PROMPT])).logits[0, -1].topk(2).values.tolist()
    assert top_gap(engine.model, PROMPT) == pytest.approx(best - second, rel=1e-3)
    found = difference("p", PROMPT, [1, 2, 3], [1, 2, 4], engine.model)
    assert found is not None
    assert (found.position, found.ours, found.theirs) == (2, 3, 4)
    assert found.gap == pytest.approx(top_gap(engine.model, [*PROMPT, 1, 2]))


def test_the_machine_is_measured() -> None:
    speeds = bandwidths(torch.device("cpu"))
    assert set(speeds) == {1, torch.get_num_threads()}
    assert all(value > 1e8 for value in speeds.values())


def test_probes_read_more_than_a_cache_holds() -> None:
    probe = timing.Bandwidth()
    assert probe._data.nbytes == timing.PROBE_BYTES
    assert probe.measure(rounds=1) > 1e8


def test_memory_growth_is_seen() -> None:
    peak = Peak(torch.device("cpu"))
    peak.start()
    block = torch.ones(20_000_000)
    grown = peak.growth()
    assert grown is None or grown > 0.7 * block.nbytes
