"""Top-beta acceptance: the rule, its neutral values, and that looser knobs keep more."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from drafters.support import PROMPTS, engine_of, generated, llama

from paceline import Engine
from paceline.drafters.aggressive import Aggressive
from paceline.drafters.draft import DraftModel
from paceline.errors import BadRequest, Unsupported
from paceline.models.causal import CausalModel
from paceline.testing import TabularModel
from paceline.tree import TokenTree
from paceline.verifiers.top_beta import TopBeta

LOGP = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]).log()


def kept(verifier: TopBeta, tokens: list[int], logp: torch.Tensor = LOGP) -> tuple[int, int]:
    """How many drafted tokens are kept, and what follows them."""
    verdict = verifier.verify_greedy(TokenTree.chain(0, tokens), logp)
    assert verdict.path == list(range(len(verdict.path)))
    return len(verdict.path) - 1, verdict.bonus


def test_a_token_must_be_among_the_best_and_close_to_the_best() -> None:
    assert kept(TopBeta(beta=2, tau=0.7), [1, 1, 0]) == (3, 2)
    assert kept(TopBeta(beta=2, tau=0.6), [1, 1, 0]) == (0, 0)
    assert kept(TopBeta(beta=2, tau=9.0), [1, 2, 0]) == (1, 1), "the third best"
    assert kept(TopBeta(beta=3, tau=9.0), [1, 2, 0]) == (3, 2)
    assert kept(TopBeta(beta=1, tau=9.0), [0, 1, 1]) == (2, 0)


def test_ties_and_what_the_policy_rules_out() -> None:
    tied = torch.tensor([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]).log()
    best = int(tied[0].argmax())
    assert kept(TopBeta(beta=1, tau=9.0), [1 - best], tied) == (0, best)
    assert kept(TopBeta(beta=2, tau=0.0), [1 - best], tied) == (1, best)
    banned = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).log()
    assert kept(TopBeta(beta=9, tau=math.inf), [2], banned)[0] == 0


def test_looser_knobs_never_keep_less() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logp = (2 * torch.randn(9, 6, generator=generator)).log_softmax(-1)
        tokens = torch.randint(6, (8,), generator=generator).tolist()
        grid = {(beta, tau): kept(TopBeta(beta, tau), tokens, logp)[0] for beta in (1, 2, 4, 6) for tau in (0, 1, 9.0)}
        for (a, low), (b, high) in itertools.product(grid, grid):
            assert a > b or low > high or grid[a, low] <= grid[b, high]


def test_texts_run_from_the_greedy_one_to_the_draft() -> None:
    large, small = llama(0), llama(5)
    engine = engine_of(large)
    draft = DraftModel(CausalModel(small), length=4, confidence=0.0)
    passes = []
    for verifier in (TopBeta(1, 9.0), TopBeta(5, 0.0), TopBeta(5, 3.0), TopBeta(48, 99.0)):
        results = [engine.generate(p, drafter=draft, verifier=verifier, max_new_tokens=20) for p in PROMPTS]
        passes.append(sum(result.stats.forward_passes for result in results))
        if passes[-1] == passes[0]:
            assert [result.tokens for result in results] == [generated(large, p, 20) for p in PROMPTS]
    assert passes[0] == passes[1] > passes[2] > passes[3]


def test_a_correction_that_hardly_matters_is_not_made() -> None:
    """The target would write x (9) for b (2), 0.5 against 0.4."""
    source, end, start = [1, 2, 3, 4], 10, 11

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        law = torch.full((12,), 0.01, dtype=torch.float64)
        at = len(prefix) - 5
        law[end if at == 4 else source[at]] = 0.4 if at == 1 else 0.9
        law[9] = 0.5 if at == 1 else 0.01
        return (law / law.sum()).log()

    engine = Engine(
        TabularModel(table, 12, end_tokens=[end]), drafter=Aggressive(before=start, confidence=0.0), nodes=9
    )
    found = {tau: engine.generate([*source, start], verifier=TopBeta(2, tau)) for tau in (0.0, 0.2, 0.3)}
    assert [result.tokens for result in found.values()] == [[1, 9, 3, 4, end]] * 2 + [[*source, end]]
    assert [result.stats.forward_passes for result in found.values()] == [3, 3, 1]


def test_sampling_is_refused_before_any_model_runs() -> None:
    with pytest.raises(Unsupported, match="'top_beta' judges greedy decoding only"):
        engine_of(llama(0)).generate(PROMPTS[0], verifier="top_beta", temperature=0.8)


@pytest.mark.parametrize(
    ("knobs", "message"), [({"beta": 0}, "beta=0"), ({"tau": -1.0}, "tau=-1.0"), ({"tau": math.nan}, "nan")]
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        TopBeta(**knobs)
