"""Two drafters as one: who leads, and what each is told."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paceline import Engine, registry
from paceline.drafters.base import Drafter, Outcome
from paceline.drafters.turns import Turns
from paceline.errors import BadRequest
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree


@dataclass(eq=False)
class Scripted(Drafter):
    """Drafts `count` times token `token`, and notes what it is told."""

    token: int = 1
    count: int = 1
    told: list[tuple[int, int]] = field(init=False, default_factory=list)
    ended: int = field(init=False, default=0)

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = self.token  # its own state, which the other must not see

    def propose(self, sequences: Seq[Sequence], budget: Seq[tuple[int, int]]) -> list[TokenTree]:
        assert all(s.drafts == self.token for s in sequences)
        return [
            TokenTree.chain(s.tokens[-1], [self.token] * min(self.count, *limits))
            for s, limits in zip(sequences, budget, strict=True)
        ]

    def commit(self, outcomes: Seq[Outcome]) -> None:
        assert all(o.sequence.drafts == self.token for o in outcomes)
        self.told += [(o.tree.drafted, len(o.path) - 1) for o in outcomes]

    def end(self, sequence: Sequence) -> None:
        assert sequence.drafts == self.token
        self.ended += 1


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    entry = {"guarantee": Guarantee.LOSSLESS, "summary": "For tests.", "paper": "none", "year": 2026}
    method(name="scripted", kind="drafter", **entry)(Scripted)


@pytest.fixture(scope="module")
def module() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_the_first_leads_where_it_has_enough(module: LlamaForCausalLM) -> None:
    first, second = Scripted(token=3, count=2), Scripted(token=5, count=4)
    engine = Engine.load(module, drafter=Turns(first, second, least=2))
    engine.generate([1, 2], max_new_tokens=8)
    assert all(tree == 0 for tree, _ in second.told[:-2]), "the second was asked though the first had enough"

    first, second = Scripted(token=3, count=1), Scripted(token=5, count=4)
    engine = Engine.load(module, drafter=Turns(first, second, least=2))
    result = engine.generate([1, 2], max_new_tokens=8)
    assert second.told[0][0] == 4
    assert result.stats.drafted >= 4


def test_the_one_passed_over_learns_how_it_would_have_done(module: LlamaForCausalLM) -> None:
    plain = Engine.load(module, drafter="none").generate([1, 2], max_new_tokens=1).tokens
    first, second = Scripted(token=plain[0], count=1), Scripted(token=plain[0], count=3)
    Engine.load(module, drafter=Turns(first, second, least=2)).generate([1, 2], max_new_tokens=6)
    assert first.told[0] == (1, 1)
    assert second.told[0][1] >= 1


def test_text_is_unchanged_and_states_are_released(module: LlamaForCausalLM) -> None:
    prompts = [[1, 2], [7, 7, 7, 7, 7], [5]]
    plain = [r.tokens for r in Engine.load(module, drafter="none").generate(prompts, max_new_tokens=30)]
    first, second = Scripted(token=3), Scripted(token=5)
    results = Engine.load(module, drafter=Turns(first, second)).generate(prompts, max_new_tokens=30)
    assert [r.tokens for r in results] == plain
    assert first.ended == second.ended == 3
    spec = "turns(ngram(min_ngram=2), recycling, least=3)"
    results = Engine.load(module, drafter=spec).generate(prompts, max_new_tokens=30)
    assert [r.tokens for r in results] == plain
    assert max(r.stats.tokens_per_pass for r in results) > 1


def test_mistakes_are_named() -> None:
    with pytest.raises(BadRequest, match="least=0"):
        Turns(Scripted(), Scripted(), least=0)
    with pytest.raises(BadRequest, match="ngram"):
        Turns("ngam", Scripted())
    assert Turns("ngram(candidates=3)", Scripted()).shape == "tree"
