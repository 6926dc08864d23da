"""Tabular targets, policies and drafters that the exact tests combine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from paceline import registry
from paceline.api import Engine
from paceline.drafters.aded import ADED
from paceline.drafters.aggressive import Aggressive
from paceline.drafters.base import Drafter
from paceline.drafters.ceed import CEED
from paceline.drafters.copyspec import CopySpec
from paceline.drafters.del_exit import Del
from paceline.drafters.draft import DraftModel
from paceline.drafters.early_exit import EarlyExit
from paceline.drafters.easyspec import EasySpec
from paceline.drafters.jacobi import Jacobi
from paceline.drafters.lexical import LexicalUnits
from paceline.drafters.lookahead import Lookahead
from paceline.drafters.ngram import NGram
from paceline.drafters.none import NoDraft
from paceline.drafters.pearl import Pearl
from paceline.drafters.quantised import Quantised
from paceline.drafters.rapid import Rapid
from paceline.drafters.recycling import Recycling
from paceline.drafters.rest import Rest
from paceline.drafters.self_speculative import SelfSpeculative
from paceline.drafters.sjd import SJD
from paceline.drafters.suffix import Suffix
from paceline.drafters.swift import Swift
from paceline.drafters.turns import Turns
from paceline.policies.base import Context, Pipeline, Policy, Stage, State
from paceline.testing import TabularModel, random_table
from paceline.testing.datastores import small
from paceline.testing.drafters import Fixed, Hostile, Tabular, TabularTree
from paceline.verifiers import Verifier
from paceline.verifiers.block import Block
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.optimal import Optimal
from paceline.verifiers.recursive import Recursive
from paceline.verifiers.rejection import Rejection
from paceline.verifiers.sequoia import Sequoia
from paceline.verifiers.specinfer import SpecInfer
from paceline.verifiers.spectr import SpecTr

VOCABULARY, LENGTH, PROMPT = 3, 3, [0, 1, 0, 2, 0]
TARGET = random_table(VOCABULARY, seed=1)
DRAFT = random_table(VOCABULARY, seed=2)


def engine_of(table: object = TARGET, vocabulary: int = VOCABULARY, end_tokens: Sequence[int] = ()) -> Engine:
    model = TabularModel(table, vocabulary, end_tokens=end_tokens)  # type: ignore[arg-type]
    return Engine(model, drafter="none", nodes=6, max_rows=2)


@dataclass(frozen=True)
class Surprise(Policy):
    """A toy of the kind of mirostat: the surprise of each chosen token sets the next token's temperature."""

    stage = Stage.TEMPERATURE
    uses_rows = True

    def start(self, context: Context) -> float:
        return 1.0

    def advance(self, state: State, token: int, row: torch.Tensor | None = None) -> float:
        assert row is not None
        return 0.5 * float(state) + float(-row.log_softmax(-1)[token])

    def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
        return scores / torch.tensor(states, dtype=scores.dtype)[:, None]


def policy(*specs: str) -> Pipeline:
    return Pipeline.of([registry.build("policy", spec) for spec in specs], greedy=False)


POLICIES: dict[str, Callable[[], Pipeline]] = {
    "none": policy,
    "temperature": lambda: policy("temperature(0.7)"),
    "top_k": lambda: policy("temperature(1.3)", "top_k(2)"),
    "top_p": lambda: policy("top_p(0.8)"),
    "penalties": lambda: policy("repetition(1.4)", "frequency(0.3)"),
    "no_repeat": lambda: policy("no_repeat(3)"),
    "uses_rows": lambda: Pipeline((Surprise(),), greedy=False),
    "greedy": lambda: Pipeline((), greedy=True),
}

_FOLDER = TemporaryDirectory()


def datastore() -> str:
    return small(Path(_FOLDER.name) / "datastore", VOCABULARY)


Make = Callable[[], Drafter]
CHAINS: dict[str, Make] = {
    "none": NoDraft,
    "fixed chain": lambda: Fixed((1, 2, 0)),
    "repeating chain": lambda: Fixed((1, 1, 1)),
    "hostile chain": lambda: Hostile(VOCABULARY, chain=True),
    "drawn": lambda: Tabular(DRAFT, 2),
    "drawn with zeros": lambda: Tabular(random_table(VOCABULARY, seed=3, zeros=1), 2),
    "drawn from the target": lambda: Tabular(TARGET, 2),
    "ngram": NGram,
    "recycling chain": lambda: Recycling(template="0 00"),
    "jacobi": lambda: Jacobi(block=3),
    "ceed": lambda: CEED(block=3),
    "lexical": lambda: LexicalUnits(pads=2, placeholder=0),
    "sjd": lambda: SJD(block=3),
    "sjd that repeats": lambda: SJD(block=4, init="repeat"),
    "suffix chain": lambda: Suffix(tree=False, confidence=0.0),
    "copyspec, else draft": lambda: CopySpec(
        gamma=2, fallback=DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), length=2, confidence=0.0)
    ),
    "aggressive": lambda: Aggressive(confidence=0.0),
    "aggressive, nearest": lambda: Aggressive(resume="nearest", ngram=2, fallback=NGram()),
    "draft": lambda: DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), length=2, confidence=0.0),
    "pearl": lambda: Pearl(TabularModel(DRAFT, VOCABULARY, name="draft"), length=2, threads=False),
    "ngram, else draft": lambda: Turns(
        NGram(), DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), length=2, confidence=0.0), least=2
    ),
    "early exit": lambda: EarlyExit(layer=1, length=2, confidence=0.0),
    "early exit that stops": lambda: EarlyExit(layer=3, length=3, confidence=0.4),
    "by a view": lambda: SelfSpeculative("unified(speedup=2)", length=2, confidence=0.0),
    "by a view that stops": lambda: SelfSpeculative("skip(mlp='1 2')", length=3, confidence=0.4),
    "quantised": lambda: Quantised(length=2, confidence=0.3),
    "swift": lambda: Swift(length=2, confidence=0.0, tries=0),
    "swift that searches": lambda: Swift(length=2, confidence=0.2, window=1, max_score=1.0),
    "del": lambda: Del(layer=2, length=2, threshold=False),
    "del that stops": lambda: Del(layer=3, length=3, memory=0.5),
    "easyspec": lambda: EasySpec(TabularModel(DRAFT, VOCABULARY, name="draft"), length=2, confidence=0.0),
    "easyspec, not calibrated": lambda: EasySpec(group=2, length=2, confidence=0.0, calibrate=False),
    "rapid": lambda: Rapid(chunk=1, query=1, retrieved=2, length=2, confidence=0.0),
    "draft that stops early": lambda: DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), confidence=0.5),
}
TREES: dict[str, Make] = {
    "fixed tree with twins": lambda: Fixed((1, 1, 0, 2, 0, 1), (0, 0, 0, 1, 1, 2)),
    "hostile tree": lambda: Hostile(VOCABULARY),
    "ngram tree": lambda: NGram(candidates=3),
    "drawn siblings": lambda: TabularTree(DRAFT, (2,)),
    "draft tree": lambda: DraftModel(TabularModel(DRAFT, VOCABULARY, name="draft"), tree="rsd_c(2)", budget=2),
    "aded": lambda: ADED(iterations=12, nodes=6),
    "suffix": Suffix,
    "rest": lambda: Rest(datastore(), shortest=1, confidence=0.0),
    "recycling": Recycling,
    "swift with siblings": lambda: Swift(length=2, confidence=0.3, tries=0, siblings=True),
    "lookahead": lambda: Lookahead(window=2, ngram=3, guesses=2, nodes=6),
}
DRAFTERS: dict[str, Make] = {**CHAINS, **TREES}
#: A new verifier joins the proofs by a line here, and its mutants by theirs in `test_mutants`.
VERIFIERS: dict[str, Verifier] = {
    "coupled": Coupled(),
    "rejection": Rejection(),
    "block": Block(),
    "optimal": Optimal(),
    "recursive": Recursive(),
    "sequoia": Sequoia(),
    "specinfer": SpecInfer(),
    "spectr": SpecTr(),
}


def pairs(drafters: Iterable[str]) -> list[tuple[str, str]]:
    """Every verifier with every one of the drafters whose shapes it judges."""
    return [
        (verifier, drafter)
        for verifier in VERIFIERS
        for drafter in drafters
        if drafter in CHAINS or "tree" in VERIFIERS[verifier].shapes
    ]
