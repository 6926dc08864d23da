"""The drafter that chooses: what it chooses, what the choice costs, and that it never changes the text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drafters.support import PROMPTS, engine_of, generated, llama, results, start
from paceline import Engine, registry
from paceline.drafters import auto, bandit, notes, prices
from paceline.drafters.auto import Auto
from paceline.drafters.bandit import CHOOSING, Bandit
from paceline.drafters.base import Drafter, Outcome
from paceline.drafters.draft import DraftModel
from paceline.drafters.expense import GLANCE
from paceline.drafters.prices import Prices
from paceline.drafters.purse import ALLOWED, CREDIT, PAUSE, Purse
from paceline.drafters.worth import Offer, Seen, Trust
from paceline.errors import BadRequest
from paceline.models.costs import PassCosts
from paceline.policies.base import Pipeline
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.testing import TabularModel, autoregressive, decoded, distance, random_table
from paceline.tree import TokenTree
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.rejection import Rejection

FLAT_TO_SIX = PassCosts({1: 1.0, 6: 1.0, 12: 1.6, 24: 2.8})


@dataclass(eq=False)
class Slow(Drafter):
    """Takes `seconds` of a made-up clock; drafts the greedy text, or rubbish."""

    texts: dict[int, list[int]] = field(default_factory=dict)
    seconds: float = 0.2
    warming: float = 0.0
    asked: int = 0
    now: float = 0.0
    groups: list[int] = field(default_factory=list)

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        self.groups.append(len(sequences))
        self.now += self.seconds * len(sequences) + (0 if self.asked else self.warming)
        self.asked += len(sequences)
        return [self._tree(s, *limits) for s, limits in zip(sequences, budget, strict=True)]

    def _tree(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        known = self.texts.get(sequence.tokens[0], [])
        ahead = known[sequence.generated :][: min(nodes, depth)] or [47] * min(nodes, depth, 3)
        return TokenTree.chain(sequence.tokens[-1], ahead)


@dataclass(eq=False)
class Watching(Slow):
    """Takes time to look at a step too, and counts the steps that it is told of."""

    looking: float = 0.0
    told: int = 0

    def peek(self, *args: object) -> torch.Tensor:
        self.now += self.looking
        return torch.zeros(1)

    def commit(self, outcomes: Seq[Outcome]) -> None:
        self.told += len(outcomes)


@dataclass(eq=False)
class Waking(Slow):
    """Drafts rubbish until some position and the greedy text from there on; may see at a glance which."""

    position: int = 100
    glancing: bool = True
    asked_at: list[int] = field(default_factory=list)

    def glimpse(self, sequence: Sequence) -> float:
        return float(self.glancing and sequence.generated >= self.position)

    def _tree(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        self.asked_at.append(sequence.generated)
        if sequence.generated < self.position:
            return TokenTree.chain(sequence.tokens[-1], [47] * min(nodes, depth, 3))
        return super()._tree(sequence, nodes, depth)


@dataclass(eq=False)
class Fallible(Drafter):
    """Drafts the greedy text with mistakes at some positions, the same ones however many tokens it drafts."""

    text: Seq[int] = ()
    right: float = 0.8
    length: int = 31

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        return [self._tree(s, *limits) for s, limits in zip(sequences, budget, strict=True)]

    def _tree(self, sequence: Sequence, nodes: int, depth: int) -> TokenTree:
        at = sequence.generated
        holds = np.random.default_rng(0).random(len(self.text)) < self.right
        count = min(nodes, depth, self.length, len(self.text) - at)
        tokens = [self.text[at + i] if holds[at + i] else 47 for i in range(count)]
        return TokenTree.chain(sequence.tokens[-1], tokens, odds=self.right ** np.arange(1, count + 1))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    entry = {"guarantee": Guarantee.LOSSLESS, "summary": "For tests.", "paper": "none", "year": 2026}
    method(name="slow", kind="drafter", **entry)(Slow)
    method(name="fallible", kind="drafter", **entry)(Fallible)
    method(name="waking", kind="drafter", **entry)(Waking)
    method(name="paid", kind="drafter", **entry)(Paid)


@pytest.fixture
def slow(registered: None, monkeypatch: pytest.MonkeyPatch) -> Slow:
    drafter = Slow()
    monkeypatch.setattr(auto, "clock", lambda: drafter.now)
    return drafter


def long_run(slow: Slow, count: int = 150) -> tuple[list[int], list[int], int]:
    module = llama(context=256)
    chooser = Auto(copy=None, table=None, draft=slow)
    engine = engine_of(module, "none")
    engine.model.costs = FLAT_TO_SIX
    result = engine.generate([5], drafter=chooser, max_new_tokens=count, ignore_eos=True)
    plain = engine.generate([5], max_new_tokens=count, ignore_eos=True)
    return result.tokens, plain.tokens, result.stats.forward_passes


def test_a_slow_drafter_that_never_helps_is_hardly_asked(slow: Slow) -> None:
    tokens, plain, passes = long_run(slow)
    assert tokens == plain
    assert 2 <= slow.asked <= 20
    assert slow.asked * slow.seconds <= 0.05 * passes * FLAT_TO_SIX(1)


def test_a_slow_drafter_that_helps_is_asked_always(slow: Slow) -> None:
    module = llama(context=256)
    module.generation_config.eos_token_id = None
    slow.texts[5] = generated(module, [5], 150)
    tokens, plain, passes = long_run(slow)
    assert tokens == plain
    assert slow.asked >= passes - 2
    assert passes < 30


def test_a_slow_first_call_condemns_nobody(slow: Slow) -> None:
    module = llama(context=256)
    module.generation_config.eos_token_id = None
    slow.texts[5], slow.warming = generated(module, [5], 150), 50.0
    _, _, passes = long_run(slow)
    assert slow.asked >= passes - 2


def test_a_draft_that_failed_in_one_text_is_tried_again_in_the_next(slow: Slow) -> None:
    module = llama(context=256)
    module.generation_config.eos_token_id = None
    slow.texts[5] = generated(module, [5], 150)
    engine = engine_of(module, "none")
    engine.model.costs = FLAT_TO_SIX
    chooser = Auto(copy=None, table=None, draft=slow)
    engine.generate([6], drafter=chooser, max_new_tokens=60, ignore_eos=True)
    failed = slow.asked
    passes = engine.generate([5], drafter=chooser, max_new_tokens=150, ignore_eos=True).stats.forward_passes
    assert 1 <= failed < 20
    assert passes < 35


def batches(slow: Slow, monkeypatch: pytest.MonkeyPatch, dearer: float = 1.0) -> Engine:
    """An engine whose passes take time of the made-up clock, drafted rows `dearer` times what is known of them."""
    engine = engine_of(llama(context=256), "none")
    engine.model.costs = FLAT_TO_SIX
    score = engine.model.score

    def timed(cache: object, rows: Seq[object], trees: Seq[TokenTree], *rest: object, **options: object) -> object:
        plain = FLAT_TO_SIX(len(rows))
        slow.now += plain + dearer * (FLAT_TO_SIX(sum(len(tree) for tree in trees)) - plain)
        return score(cache, rows, trees, *rest, **options)

    monkeypatch.setattr(engine.model, "score", timed)
    monkeypatch.setattr(prices, "clock", lambda: slow.now)
    return engine


def four_texts(engine: Engine, slow: Slow, prompts: list[list[int]], count: int = 100) -> list[int]:
    """Passes of each text of a batch, which are the greedy ones."""
    chooser = Auto(copy=None, table=None, draft=slow)
    found = results(engine, prompts, drafter=chooser, max_new_tokens=count, ignore_eos=True)
    plain = results(engine, prompts, max_new_tokens=count, ignore_eos=True)
    assert [result.tokens for result in found] == [result.tokens for result in plain]
    return [result.stats.forward_passes for result in found]


def test_in_a_batch_one_text_finds_out_that_a_drafter_never_helps(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = four_texts(batches(slow, monkeypatch), slow, [[5], [6], [7], [8]])
    assert min(passes) > 95
    assert set(slow.groups[:3]) == {1}
    assert sum(slow.groups) < 12


def test_in_a_batch_all_ask_a_drafter_that_helps_one(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    module = llama(context=256)
    module.generation_config.eos_token_id = None
    slow.texts = {first: generated(module, [first], 100) for first in (5, 6, 7, 8)}
    slow.seconds = 0.03
    passes = four_texts(batches(slow, monkeypatch), slow, [[5], [6], [7], [8]])
    assert slow.groups.index(4) < 12
    assert max(passes) < 60


@pytest.mark.parametrize(("dearer", "most"), [(1.0, 70), (4.0, 100), (8.0, 115)])
def test_in_a_batch_rows_that_turn_out_dearer_end_drafting(
    dearer: float, most: float, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is taken for 0.2 of a token to begin with, and drafts hold; plain decoding would take 104 seconds."""
    module = llama(context=256)
    module.generation_config.eos_token_id = None
    slow.texts = {first: generated(module, [first], 100) for first in (5, 6, 7, 8)}
    slow.seconds = 0.03
    four_texts(batches(slow, monkeypatch, dearer), slow, [[5], [6], [7], [8]])
    assert slow.now - 104 < most


def test_in_a_batch_what_counts_as_asking_is_the_choice_itself(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a drafter takes that was foretold to be worth it counts against what its drafts save."""
    slow.seconds = 0.03
    engine = batches(slow, monkeypatch)
    chooser = Auto(copy=None, table=None, draft=slow)
    results(engine, [[5], [6], [7], [8]], drafter=chooser, max_new_tokens=40, ignore_eos=True)
    assert slow.asked > 3
    assert chooser._purse.known
    assert chooser._purse._takes(4) < 0.001


@pytest.mark.parametrize(
    ("costs", "most"),
    [({1: 1.0, 16: 1.0}, 1.0), ({1: 1.0, 8: 8.0, 16: 12.0}, 0.7), ({1: 1.0, 8: 8.0, 16: 15.0}, 0.25)],
)
def test_in_a_batch_who_copies_in_vain_is_asked_as_often_as_drafts_might_pay(
    costs: dict[int, float], most: float, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking takes 4 per mille of a text's share of a step; where rows cost nothing, that is not worth a thought."""
    engine = batches(slow, monkeypatch)
    engine.model.costs = PassCosts(costs)
    slow.seconds = 0.004 * engine.model.costs(8) / 8
    chooser = Auto(copy=slow, table=None, draft=None)
    prompts = [[first] for first in range(5, 13)]
    found = results(engine, prompts, drafter=chooser, max_new_tokens=100, ignore_eos=True)
    passes = sum(result.stats.forward_passes for result in found)
    assert slow.asked == passes if most == 1 else slow.asked < most * passes
    assert (8 in slow.groups) == (most > 0.25), "all eight are left alone where drafts that hold would bring nothing"


@pytest.mark.parametrize(("heavy", "tried"), [(0.01, True), (100.0, False)])
def test_in_a_batch_reading_a_prompt_must_be_worth_it(
    heavy: float, tried: bool, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.seconds, slow.size_ratio = 0.03, heavy
    engine = batches(slow, monkeypatch)
    chooser = Auto(copy=None, table=None, draft=slow)
    for first in (5, 6):
        start(engine, [first], drafter=chooser, max_new_tokens=50, ignore_eos=True, temperature=1.0)
    while engine.decoder.running or engine.decoder.waiting:
        engine.decoder.step()
    assert (slow.asked > 0) is tried


@pytest.mark.parametrize(
    ("seconds", "heavy", "hopeful"), [(0.21, 0.0, True), (0.23, 0.0, False), (0.1, 1.0, True), (0.1, 2.0, False)]
)
def test_in_a_batch_drafts_must_save_twice_what_asking_and_reading_take(
    seconds: float, heavy: float, hopeful: bool
) -> None:
    """Drafts save 0.5 / 1.15 of a step; to read a text takes `heavy` seconds; each of four has 50 tokens left."""
    chooser = Bandit(Prices(PassCosts({1: 1.0, 32: 1.0})), [heavy], 0.0, Purse())
    text, past = notes.Notes([None], [None]), notes.Past(1)
    text.start(past, greedy=True)
    for _ in range(4):
        past.records[0].offers.add(Offer.of(TokenTree.chain(0, [1]), np.array([1.0, 0.5])))
        chooser.paces[0].add(seconds, 4, 1)
    sequence = SimpleNamespace(drafts=text, tokens=[1], remaining=50)
    assert chooser.hopeful(0, sequence, Offer.none(1), 4) is hopeful  # type: ignore[arg-type]
    text.records[0].offers.add(Offer.of(TokenTree.chain(0, [1]), np.array([1.0, 0.5])))
    assert chooser.hopeful(0, sequence, Offer.none(1), 4) is (seconds < 0.22)  # type: ignore[arg-type]


@pytest.mark.parametrize(("waiting", "most", "asked"), [(3, 8, []), (0, 8, [1]), (3, 1, [1])])
def test_nobody_is_asked_beside_a_prompt_while_others_are_written(
    waiting: int, most: int, asked: list[int], slow: Slow
) -> None:
    """Nor before they are, where they wait and will share its steps."""
    engine = engine_of(llama(context=256), "none", max_rows=most)
    engine.model.costs = FLAT_TO_SIX
    chooser = Auto(copy=None, table=None, draft=slow)
    for first in range(5, 6 + waiting):
        start(engine, [first] * 20, drafter=chooser)
    engine.decoder.step()
    assert len(engine.decoder.running) == min(1 + waiting, most)
    assert slow.groups == asked


def test_a_text_starts_from_what_others_of_its_temperature_taught(slow: Slow) -> None:
    engine = engine_of(llama(context=256), "none")
    engine.model.costs = FLAT_TO_SIX
    chooser = Auto(copy=None, table=None, draft=slow)
    for first in (5, 7, 8):
        engine.generate([first], drafter=chooser, max_new_tokens=100, ignore_eos=True)
    chances = []
    for temperature in (0.0, 0.9):
        start(engine, [6], drafter=chooser, temperature=temperature)
        engine.decoder.step()
        (text,) = engine.decoder.running
        (record,) = text.drafts.records
        chances.append(record.trust.corrected(TokenTree.chain(6, [47]))[1])
        engine.decoder.cancel(text.request.id)
    assert chances[0] < 0.2 < 0.3 < chances[1]


@pytest.mark.parametrize("seconds", [0.0, 0.15])
def test_a_text_with_hopeless_drafts_is_left_alone_where_asking_takes_time(slow: Slow, seconds: float) -> None:
    """A drafter that is free by its share, in steps so short that asking is felt."""
    slow.seconds = seconds
    engine = engine_of(llama(context=256), "none")
    engine.model.costs = PassCosts({1: 10.0, 6: 10.0, 12: 16.0})
    chooser = Auto(copy=slow, table=None, draft=None)
    result = engine.generate([5], drafter=chooser, max_new_tokens=200, ignore_eos=True)
    assert result.tokens == engine.generate([5], max_new_tokens=200, ignore_eos=True).tokens
    passes = result.stats.forward_passes
    assert passes >= 190
    assert slow.asked == passes if seconds == 0 else slow.asked < 0.8 * passes


def test_a_drafter_is_free_that_takes_no_longer_than_to_choose_it() -> None:
    bandit = Bandit(Prices(PassCosts({1: 1e-4, 32: 1e-3})), [0.0, 0.0], 0.1, Purse())
    assert not bandit.free(0), "nobody knows yet"
    for member, seconds in enumerate((0.9 * CHOOSING, 1.1 * CHOOSING)):
        bandit.paces[member].add(seconds, 1, 1)
    assert [bandit.free(member) for member in range(2)] == [True, False]


@pytest.mark.parametrize("seconds", [0.01, 0.03, 0.1, 0.2])
def test_in_a_batch_drafts_that_never_hold_lose_a_hundredth(
    seconds: float, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what may be lost at first and at last; asking for four texts takes up to 0.8 of a step."""
    engine = batches(slow, monkeypatch)
    slow.seconds = seconds
    chooser = Auto(copy=slow, table=None, draft=None)
    monkeypatch.setattr(bandit, "FREE", 1.0)
    prompts = [[first] * 20 for first in range(5, 9)]
    found = results(engine, prompts, drafter=chooser, max_new_tokens=200, ignore_eos=True)
    steps = max(result.stats.forward_passes for result in found)
    assert steps > 180
    assert 4 <= slow.asked <= (CREDIT + ALLOWED * steps) / seconds + 4


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("glancing", [True, False])
def test_a_glance_wakes_a_batch_whose_drafts_were_given_up(glancing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[first] for first in range(5, 9)]
    drafter = Waking(seconds=0.3, position=120, glancing=glancing)
    engine = batches(drafter, monkeypatch)
    monkeypatch.setattr(auto, "clock", lambda: drafter.now)
    monkeypatch.setattr(bandit, "FREE", 1.0)
    engine.model.costs = PassCosts({1: 1.0, 32: 1.0})
    plain = results(engine, prompts, max_new_tokens=200, ignore_eos=True)
    drafter.texts = {prompt[0]: result.tokens for prompt, result in zip(prompts, plain, strict=True)}
    chooser = Auto(copy=drafter, table=None, draft=None)
    found = results(engine, prompts, drafter=chooser, max_new_tokens=200, ignore_eos=True)
    assert [result.tokens for result in found] == [result.tokens for result in plain]
    waited = min((at for at in drafter.asked_at if at >= 120), default=200) - 120
    assert waited <= PAUSE if glancing else waited > PAUSE


@pytest.mark.parametrize(("left", "tried"), [(0.5, True), (0.1, False), (-1.0, False)])
def test_in_a_batch_a_trial_reads_no_more_than_may_be_lost(left: float, tried: bool) -> None:
    """Nobody knows yet what the member promises; to read a text takes 0.3 of a step, and 100 tokens are left."""
    purse = Purse()
    chooser = Bandit(Prices(PassCosts({1: 1.0, 32: 1.0})), [0.3], 0.0, purse)
    purse.left = left
    text = notes.Notes([None], [None])
    text.start(notes.Past(1), greedy=True)
    sequence = SimpleNamespace(drafts=text, tokens=[1], remaining=100)
    assert chooser.hopeful(0, sequence, Offer.none(1), 4) is tried  # type: ignore[arg-type]


def hopeless(drafter: Watching, monkeypatch: pytest.MonkeyPatch) -> int:
    """Passes of a text for which a drafter, free by its share, has nothing but rubbish."""
    monkeypatch.setattr(auto, "clock", lambda: drafter.now)
    engine = engine_of(llama(context=256), "none")
    engine.model.costs = PassCosts({1: 10.0, 6: 10.0, 12: 16.0})
    chooser = Auto(copy=drafter, table=None, draft=None)
    return engine.generate([5], drafter=chooser, max_new_tokens=200, ignore_eos=True).stats.forward_passes


@pytest.mark.usefixtures("registered")
def test_looking_at_a_step_is_time_of_asking_too(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Watching(seconds=0.0, looking=0.3)
    passes = hopeless(drafter, monkeypatch)
    assert 8 <= drafter.asked < 0.4 * passes


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("glancing", [True, False])
def test_a_glance_wakes_a_text_whose_drafts_were_given_up(glancing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(llama(context=256), "none")
    text = engine.generate([5], max_new_tokens=120, ignore_eos=True).tokens
    positions = []
    for position in range(60, 76, 3):  # whatever phase of a rest it falls into
        drafter = Waking(texts={5: text}, seconds=1.0, position=position, glancing=glancing)
        monkeypatch.setattr(auto, "clock", lambda now=drafter: now.now)
        engine.model.costs = PassCosts({1: 10.0, 6: 10.0, 12: 16.0})
        chooser = Auto(copy=drafter, table=None, draft=None)
        assert engine.generate([5], drafter=chooser, max_new_tokens=120, ignore_eos=True).tokens == text
        positions.append(min(at for at in drafter.asked_at if at >= position) - position)
    assert max(positions) <= GLANCE if glancing else max(positions) > 2 * GLANCE


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("catches_up", [True, False])
def test_who_catches_up_is_told_only_of_steps_in_which_it_was_asked(
    catches_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = Watching(seconds=0.15)
    drafter.catches_up = catches_up
    passes = hopeless(drafter, monkeypatch)
    assert drafter.asked < passes
    assert drafter.told == (drafter.asked if catches_up else passes)


@pytest.mark.parametrize(
    ("sure", "count", "tried"), [(0.3, 100, False), (0.3, 180, True), (0.95, 100, True)], ids=["short", "long", "sure"]
)
def test_a_heavy_drafter_must_be_worth_reading_the_prompt(
    slow: Slow, sure: float, count: int, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "UNSURE", 0.0)  # so that it is not tried beside the prompt already
    slow.size_ratio = 1.5
    engine = engine_of(llama(context=256), "none")
    engine.model.costs = FLAT_TO_SIX
    chooser = Auto(copy=None, table=None, draft=slow)
    text = start(engine, [5], drafter=chooser, temperature=1.0, max_new_tokens=count, ignore_eos=True)
    engine.decoder.step()
    text.drafts.sure, text.drafts.steps = sure, 20
    assert not slow.asked
    chooser.propose([text], [(15, 15)])
    assert bool(slow.asked) is tried
    engine.decoder.cancel(text.request.id)


def test_a_text_whose_drafts_hold_never_rests(slow: Slow) -> None:
    module = llama(context=256)
    module.generation_config.eos_token_id = None
    engine = engine_of(module, "none")
    engine.model.costs = FLAT_TO_SIX
    slow.texts[5] = engine.generate([5], max_new_tokens=150, ignore_eos=True).tokens
    slow.seconds = 0.015
    chooser = Auto(copy=slow, table=None, draft=None)
    result = engine.generate([5], drafter=chooser, max_new_tokens=150, ignore_eos=True)
    assert slow.asked >= result.stats.forward_passes - 1
    assert result.stats.tokens_per_pass > 4


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("right", [0.5, 0.7, 0.9])
def test_no_fixed_length_is_five_percent_faster(right: float, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 300
    module = llama(context=count + 8)
    module.generation_config.eos_token_id = None
    engine = engine_of(module, "none")
    engine.model.costs = FLAT_TO_SIX
    spent, score = [0.0], engine.model.score

    def timed(cache: object, rows: object, trees: Seq[TokenTree], *rest: object, **options: object) -> object:
        spent[0] += FLAT_TO_SIX(sum(len(tree) for tree in trees))
        return score(cache, rows, trees, *rest, **options)

    monkeypatch.setattr(engine.model, "score", timed)
    text = generated(module, [5], count)

    def seconds(drafter: Drafter) -> float:
        spent[0] = 0.0
        assert engine.generate([5], drafter=drafter, max_new_tokens=count).tokens == text
        return spent[0]

    fixed = {length: seconds(Fallible(text, right, length)) for length in (1, 2, 3, 4, 5, 6, 8, 11, 16)}
    own = seconds(Auto(copy=Fallible(text, right), draft=None, table=None, shape="chain"))
    assert own <= 1.05 * min(fixed.values()), fixed


@dataclass(eq=False)
class Paid(Fallible):
    """Takes `share` of a pass for each token that it drafts."""

    share: float = 0.2
    now: list[float] = field(default_factory=lambda: [0.0])

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        trees = super().propose(sequences, budget)
        self.now[0] += self.share * sum(tree.drafted for tree in trees)
        return trees


def sped_up(right: float, share: float, length: int) -> float:
    """How many times as fast a chain of so many tokens makes decoding, of which each holds with chance `right`."""
    return (1 - right ** (length + 1)) / ((1 - right) * (length * share + 1))


@pytest.mark.parametrize(
    ("right", "share", "wanted"), [(0.8, 0.05, 8), (0.8, 0.2, 4), (0.6, 0.05, 4), (0.6, 0.6, 0), (0.8, 0.6, 1)]
)
def test_no_fixed_length_of_a_paid_draft_is_five_percent_faster(
    registered: None, right: float, share: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(range(20), key=lambda length: sped_up(right, share, length)) == wanted
    count, flat = 600, PassCosts({1: 1.0, 32: 1.0})
    module = llama(context=count + 8)
    module.generation_config.eos_token_id = None
    engine = engine_of(module, "none")
    engine.model.costs = flat
    now, score = [0.0], engine.model.score
    monkeypatch.setattr(auto, "clock", lambda: now[0])

    def timed(*args: object, **options: object) -> object:
        now[0] += 1.0
        return score(*args, **options)

    monkeypatch.setattr(engine.model, "score", timed)
    text = generated(module, [5], count)

    def seconds(drafter: Drafter) -> float:
        began = now[0]
        assert engine.generate([5], drafter=drafter, max_new_tokens=count).tokens == text
        return now[0] - began

    fixed = {n: seconds(Paid(text, right, n, share, now)) for n in (1, 2, 3, 4, 5, 6, 8, 11, 16)}
    fixed[0] = float(count)
    own = seconds(Auto(copy=None, draft=Paid(text, right, 31, share, now), table=None, shape="chain"))
    assert own <= 1.05 * min(fixed.values()), fixed


def test_trust_follows_what_came_true() -> None:
    trust = Trust()
    tree = TokenTree(np.array([9, 1, 2, 3]), np.array([-1, 0, 1, 2]), odds=np.array([1.0, 0.9, 0.81, 0.729]))
    before = trust.corrected(tree)
    assert np.allclose(before, [1, 0.85, 0.85**2, 0.85**3])
    for _ in range(40):
        trust.learn(Seen.of(tree, [0]))
    assert trust.corrected(tree)[1] < 0.3
    for _ in range(80):
        trust.learn(Seen.of(tree, [0, 1, 2, 3]))
    assert trust.corrected(tree)[1] > 0.85
    other = TokenTree(np.array([9, 1]), np.array([-1, 0]), odds=np.array([1.0, 0.3]))
    assert trust.corrected(other)[1] == Trust().corrected(other)[1], "other classes of guesses are left alone"


@pytest.mark.parametrize("free", [0.02, -1.0], ids=["free members", "every member must be chosen"])
@pytest.mark.parametrize("verifier", [Coupled(), Rejection()])
def test_the_law_is_kept(verifier: object, free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandit, "FREE", free)
    monkeypatch.setattr(auto, "clock", itertools.count(0.0, 0.01).__next__)
    target, draft = random_table(3, seed=1), random_table(3, seed=2)
    engine = engine_of_tables(target)
    pipeline = Pipeline((), greedy=False)

    def make() -> Auto:
        model = DraftModel(TabularModel(draft, 3, name="draft"), length=2, confidence=0.0)
        return Auto(copy="ngram", table=None, draft=model, shape="chain")

    law = decoded(engine, [0, 1, 0, 2, 0], 3, make, verifier, pipeline).law  # type: ignore[arg-type]
    assert distance(law, autoregressive(engine.model, pipeline, [0, 1, 0, 2, 0], 3)) < 1e-10


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_drawn_draft_is_never_replaced(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether another draft looks better depends on what was drawn: to replace it would favour some tokens."""
    monkeypatch.setattr(bandit, "FREE", 1e9)
    monkeypatch.setattr(auto, "clock", itertools.count(0.0, 0.01).__next__)
    engine, pipeline = engine_of_tables(random_table(3, seed=1)), Pipeline((), greedy=False)

    def make() -> Auto:
        model = DraftModel(TabularModel(random_table(3, seed=seed), 3, name="draft"), length=1, confidence=0.0)
        return Auto(copy=model, table="ngram", draft=None, shape="chain")

    law = decoded(engine, [0, 1, 0, 2, 0], 2, make, Rejection(), pipeline).law  # type: ignore[arg-type]
    assert distance(law, autoregressive(engine.model, pipeline, [0, 1, 0, 2, 0], 2)) < 1e-9


def engine_of_tables(table: object) -> object:
    return Engine(TabularModel(table, 3), drafter="none", nodes=6, max_rows=2)  # type: ignore[arg-type]


def test_batches_with_every_member_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "clock", itertools.count(0.0, 1.0).__next__)  # a step takes one second
    module = llama()
    draft = DraftModel(llama(seed=3, layers=1), fast=False)
    engine = engine_of(module)
    engine.model.costs = PassCosts({1: 1.0, 64: 2.0})
    chooser = Auto(draft=draft, table="recycling")
    wanted = [generated(module, prompt, 40) for prompt in PROMPTS]
    for result, tokens in zip(results(engine, PROMPTS, drafter=chooser, max_new_tokens=40), wanted, strict=True):
        assert result.tokens == tokens[: len(result.tokens)]
        assert result.stats.accepted > 0
    sampled = {"temperature": 0.9, "seed": 3, "max_new_tokens": 24}
    plain = results(engine, PROMPTS, **sampled)
    assert [r.tokens for r in results(engine, PROMPTS, drafter=chooser, **sampled)] == [r.tokens for r in plain]


def test_the_pocket_draft_is_left_out_where_the_vocabulary_differs() -> None:
    chooser = Auto()
    engine_of(llama(), chooser)
    assert len(chooser.members) == 2
    with pytest.raises(BadRequest, match="vocabular"):
        engine_of(llama(), "auto(draft=draft)")


@pytest.mark.parametrize(
    ("spec", "named"), [("auto(most=0)", "most"), ("auto(explore=-1)", "explore"), ("auto(shape=ring)", "shape")]
)
def test_bad_options_are_named(spec: str, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        registry.build("drafter", spec)


def test_a_chain_is_kept_a_chain() -> None:
    with pytest.raises(BadRequest, match="drafts trees"):
        Auto(copy="ngram(candidates=3)", shape="chain")
    engine = engine_of(llama(), Auto(draft=None, shape="chain"))
    with torch.inference_mode():
        result = engine.generate(PROMPTS[2], max_new_tokens=20, temperature=0.7, verifier="rejection")
    assert len(result.tokens) == 20 or result.finish_reason == "stop"
