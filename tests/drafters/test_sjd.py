"""Speculative Jacobi decoding: stored laws, exactness, and passes saved."""

from __future__ import annotations

import pytest
import torch

from paceline import Engine
from paceline.drafters.sjd import SJD
from paceline.errors import BadRequest
from paceline.policies.base import Pipeline
from paceline.testing import TabularModel, autoregressive, decoded, distance, random_table
from paceline.verifiers.rejection import Rejection
from tests.drafters.support import PROMPTS, batch, engine_of, llama, results, start

SAMPLED = Pipeline((), greedy=False)


def table_engine(vocabulary: int, **options: object) -> Engine:
    return Engine(TabularModel(random_table(vocabulary, seed=1), vocabulary), drafter="none", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("init", ["random", "text", "repeat"])
@pytest.mark.parametrize(("vocabulary", "window"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)])
def test_the_window_machine_is_exact(vocabulary: int, window: int, init: str) -> None:
    engine = table_engine(vocabulary)
    result = decoded(engine, [0, 1], 3, lambda: SJD(block=window + 1, init=init), Rejection(), SAMPLED)
    assert distance(result.law, autoregressive(engine.model, SAMPLED, [0, 1], 3)) < 1e-12
    assert result.accepted > 0


def test_a_token_kept_under_a_new_law_is_caught() -> None:
    """The comparison looks at the redraw: keys that do not name the step repeat an old draw under a new law."""

    class Stale(SJD):
        def _chain(self, sequence, guesses, count):  # type: ignore[no-untyped-def]
            tree = super()._chain(sequence, guesses, count)
            kept = getattr(sequence, "kept", {})
            tokens = tree.tokens.copy()
            for i in range(1, len(tokens)):
                at = sequence.generated + i - 1
                tokens[i] = kept.setdefault(at, int(tokens[i]))
            sequence.kept = kept
            return type(tree)(tokens, tree.parents, tree.draws)

    engine = table_engine(3)
    result = decoded(engine, [0, 1], 3, lambda: Stale(block=3), Rejection(), SAMPLED)
    assert distance(result.law, autoregressive(engine.model, SAMPLED, [0, 1], 3)) > 1e-3


def test_a_draft_carries_the_laws_of_the_last_pass() -> None:
    """Behind the token that was refused, q is what the pass said there, given the old guesses."""
    model = TabularModel(random_table(5, seed=1), 5)
    drafter = SJD(block=5)
    engine = Engine(model, drafter=drafter, verifier="rejection")
    sequence = start(engine, [1, 2], max_new_tokens=20, temperature=1.0, seed=3)
    engine.decoder.step()
    for _ in range(5):
        text = list(sequence.tokens)
        tree = drafter.propose([sequence], [(4, 4)])[0]
        assert tree.tokens.tolist() == drafter.propose([sequence], [(4, 4)])[0].tokens.tolist()
        engine.decoder.step()
        accepted = len(sequence.tokens) - len(text) - 1
        after = drafter.propose([sequence], [(4, 4)])[0]
        rows = after.draws.row[1:].tolist() if after.draws is not None else [-1] * 4
        assert rows == [*range(4 - accepted), *[-1] * accepted]
        for i in range(4 - accepted):
            prefix = text + tree.tokens[1 : accepted + 2 + i].tolist()
            torch.testing.assert_close(after.draws.logq[i], model.table(tuple(prefix)))


def test_a_neighbour_that_repeats_saves_passes() -> None:
    """A toy image of long runs."""

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        logits = torch.zeros(32, dtype=torch.float64)
        logits[prefix[-1]] = 7.0
        return logits.log_softmax(-1)

    engine = Engine(TabularModel(table, 32, context=300), drafter="none", verifier="rejection")
    passes = {
        init: engine.generate([1], max_new_tokens=200, temperature=1.0, drafter=SJD(block=6, init=init)).stats
        for init in ("random", "repeat")
    }
    assert passes["repeat"].forward_passes < passes["random"].forward_passes <= 200


def test_greedily_and_coupled_it_is_jacobi() -> None:
    engine = engine_of(llama())
    for verifier in ("coupled", "rejection"):
        batch("sjd", 30, engine_of(llama(), verifier=verifier))
    settings = {"max_new_tokens": 30, "temperature": 0.8, "seed": 2}
    texts = [results(engine, PROMPTS, drafter=spec, **settings) for spec in ("none", "sjd", "jacobi(init=random)")]
    assert [[r.tokens for r in rs] for rs in texts[1:]] == [[r.tokens for r in texts[0]]] * 2
    assert [r.stats.accepted for r in texts[1]] == [r.stats.accepted for r in texts[2]]


def test_knobs_are_checked() -> None:
    with pytest.raises(BadRequest, match=r"sjd\(block=0\)"):
        SJD(block=0)
