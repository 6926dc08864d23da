"""What holds for every policy and any pipeline of them: laws, purity, tree = chain, order, transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.policies import Context, Pipeline, Policy, Stage, State
from paceline.policies.banned import Banned
from paceline.policies.frequency import Frequency
from paceline.policies.min_length import MinLength
from paceline.policies.min_p import MinP
from paceline.policies.no_repeat import NoRepeat
from paceline.policies.repetition import Repetition
from paceline.policies.temperature import Temperature
from paceline.policies.top_k import TopK
from paceline.policies.top_p import TopP
from paceline.registry import methods
from paceline.tree import TokenTree

from .common import ACTIVE, CONTEXT, NEUTRAL, PROMPT, V, after, chain_row, name, random_tree, scores

TRUNCATED = [TopK(6), TopP(0.9), MinP(0.05)]
PIPELINES = [
    *[[policy] for policy in ACTIVE],
    [],
    [Repetition(1.2), Frequency(0.3), MinLength(4), Temperature(0.8), *TRUNCATED],
    [*TRUNCATED, NoRepeat(2), Temperature(1.4), Repetition(1.5), Banned([2])],
]


@dataclass(frozen=True)
class Surprise(Policy):
    """A truncation with feedback: keep tokens of surprise up to mu, which follows what was taken."""

    target: float = 2.0
    rate: float = 0.5

    stage = Stage.TRUNCATION
    uses_rows = True

    def start(self, context: Context) -> float:
        return 2 * self.target

    def advance(self, state: float, token: int, row: torch.Tensor | None = None) -> float:
        assert row is not None
        surprise = -float(row.log_softmax(-1)[token]) if row[token].isfinite() else 9.0
        return state - self.rate * (surprise - self.target)

    def transform(self, scores: torch.Tensor, states: Sequence[State]) -> torch.Tensor:
        surprise = -scores.log_softmax(-1)
        limit = torch.tensor(states, dtype=scores.dtype)[:, None]
        return scores.masked_fill((surprise > limit) & (scores < scores.amax(-1, keepdim=True)), -torch.inf)


def test_every_policy_here_is_registered_with_an_argument() -> None:
    known = {m.cls: m for m in methods("policy")}
    for policy in ACTIVE:
        assert known[type(policy)].argument
        assert known[type(policy)].summary.endswith(".")


@pytest.mark.parametrize("policy", ACTIVE, ids=name)
def test_rows_are_laws_and_the_input_stays(policy: Policy) -> None:
    assert not policy.neutral
    for seed in range(5):
        raw = scores(6, seed)
        copy = raw.clone()
        states = [after(policy, random_tree(seed).tokens[:n].tolist()) for n in range(6)]
        rows = policy.transform(raw, states)
        assert torch.equal(raw, copy)
        assert rows.shape == raw.shape
        assert not rows.isnan().any()
        assert rows.isfinite().any(-1).all()
        torch.testing.assert_close(Pipeline((policy,), greedy=False).distribution(rows).exp().sum(-1), torch.ones(6))


@pytest.mark.parametrize("policy", NEUTRAL, ids=name)
def test_defaults_change_nothing(policy: Policy) -> None:
    raw = scores(4, 7)
    assert policy.neutral
    assert Pipeline.of([policy], greedy=False).policies == ()
    states = [after(policy, [0, 1, 2][:n]) for n in range(4)]
    assert torch.equal(policy.transform(raw, states), raw)


@pytest.mark.parametrize("policy", ACTIVE, ids=name)
def test_policies_are_values(policy: Policy) -> None:
    """Equal knobs make equal, hashable policies, so that they can be shared and looked up."""
    twin = type(policy)(**vars(policy))
    assert twin == policy
    assert hash(twin) == hash(policy)


@pytest.mark.parametrize("policy", ACTIVE, ids=name)
def test_branches_do_not_disturb_each_other(policy: Policy) -> None:
    """Forty forks, advanced and settled in random order, give the rows of forty lone runs."""
    dice, raw = random.Random(3), scores(1, 8)
    branches: list[tuple[list[int], State]] = [([], policy.start(CONTEXT))]
    while len(branches) < 40:
        tokens, state = dice.choice(branches)
        token = dice.randrange(V)
        twin = policy.advance(state, token)
        state = policy.advance(state, token)
        assert torch.equal(policy.transform(raw, [twin]), policy.transform(raw, [state]))
        branches.append(([*tokens, token], policy.settle(state) if dice.random() < 0.5 else state))
    together = policy.transform(raw.expand(len(branches), -1), [state for _, state in branches])
    for row, (tokens, _) in zip(together, branches, strict=True):
        assert torch.equal(row, policy.transform(raw, [after(policy, tokens)])[0])


@pytest.mark.parametrize("policies", PIPELINES, ids=lambda policies: "+".join(map(name, policies)))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_rows_of_a_tree_are_those_of_its_chains(policies: list[Policy], dtype: torch.dtype, tolerance: float) -> None:
    pipeline = Pipeline.of(policies, greedy=False)
    committed = [5, 0, 5, 11, 10, 4] * 7
    state = pipeline.start(CONTEXT)
    for token in committed:
        state = pipeline.settle(pipeline.advance(state, token))
    for seed in range(3):
        tree, raw = random_tree(seed), scores(13, seed, dtype=dtype)
        rows, states = pipeline.over(tree, raw, state)
        assert len(states) == len(tree) == 13
        for node in range(len(tree)):
            tokens = committed + [int(tree.tokens[n]) for n in tree.path(node)[1:]]
            expected = chain_row(pipeline, raw[node], tokens)
            torch.testing.assert_close(rows[node], expected, atol=tolerance, rtol=0)
            again = pipeline.transform(raw[node][None], [states[node]])[0]
            torch.testing.assert_close(again, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_states_that_need_rows_are_built_from_the_root_down(seed: int) -> None:
    policies = [Surprise(), Temperature(0.7), Repetition(1.4)]
    pipeline = Pipeline.of(policies, greedy=False)
    assert pipeline.uses_rows
    tree, raw = random_tree(seed), scores(13, seed, dtype=torch.float64)
    rows, states = pipeline.over(tree, raw, pipeline.start(CONTEXT))
    for node in range(len(tree)):
        path = tree.path(node)
        state = pipeline.start(CONTEXT)
        row = pipeline.transform(raw[0][None], [state])[0]
        for _, child in pairwise(path):
            state = pipeline.advance(state, int(tree.tokens[child]), row)
            row = pipeline.transform(raw[child][None], [state])[0]
        torch.testing.assert_close(rows[node], row, atol=1e-9, rtol=0)
        assert states[node][-1] == pytest.approx(state[-1])
    assert len({state[-1] for state in states}) > 3  # branches differ


def test_a_root_alone_needs_no_advance() -> None:
    for policies in ([Surprise()], [Repetition(1.3)], []):
        pipeline = Pipeline.of(policies, greedy=False)
        state = pipeline.start(CONTEXT)
        rows, states = pipeline.over(TokenTree.empty(4), scores(1, 0), state)
        assert torch.equal(rows, pipeline.transform(scores(1, 0), [state]))
        assert states == [state]


def test_stages_are_sorted_and_equal_stages_keep_the_order_given() -> None:
    given = [TopP(0.9), Temperature(0.8), MinLength(2), TopK(5), Repetition(1.2), Banned([1]), Frequency(0.2)]
    ordered = [
        Repetition(1.2),
        Frequency(0.2),
        MinLength(2),
        Banned([1]),
        Temperature(0.8),
        TopP(0.9),
        TopK(5),
    ]
    assert list(Pipeline.of(given, greedy=False).policies) == ordered
    assert list(Pipeline.of(given, greedy=True).policies) == ordered[:4]


def test_the_order_of_truncations_matters() -> None:
    """Nucleus of the four best is not the four best of a nucleus."""
    raw = torch.tensor([0.3, 0.2, 0.2, 0.15, 0.1, 0.05]).log()[None]
    first_k = Pipeline.of([TopK(4), TopP(0.8)], greedy=False).transform(raw, [(None, None)])
    first_p = Pipeline.of([TopP(0.8), TopK(4)], greedy=False).transform(raw, [(None, None)])
    assert first_k.isfinite().sum() == 3  # 0.3 + 0.2 + 0.2 of 0.85 is above 0.8
    assert first_p.isfinite().sum() == 4


def test_masks_come_before_truncations() -> None:
    """The best tokens being banned, the two best legal ones stay."""
    pipeline = Pipeline.of([TopK(2), Banned([0, 1])], greedy=False)
    row = pipeline.transform(torch.tensor([[9.0, 8.0, 3.0, 2.0, 1.0]]), [pipeline.start(Context((), 5))])
    assert row.isfinite().nonzero()[:, 1].tolist() == [2, 3]


def test_greedy_ties_go_to_the_lowest_id() -> None:
    law = Pipeline(greedy=True).distribution(torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]]))
    assert law.tolist() == [[-torch.inf, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]]


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_transformers_generation(seed: int) -> None:
    """The scores that `generate` samples from, all options on, step by step."""
    from paceline.requests import Sampling
    from paceline.settings import build_pipeline

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 12
    options = {
        "eta_cutoff": 0.02,
        "top_p": 0.97,
        "epsilon_cutoff": 0.004,
        "typical_p": 0.95,
        "min_p": 0.01,
        "top_k": 40,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 8,
    }
    prompt = (*PROMPT, 40, 41, 40)
    out = model.generate(
        torch.tensor([prompt]),
        do_sample=True,
        temperature=0.9,
        max_new_tokens=12,
        eos_token_id=[7, 9],
        pad_token_id=0,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    pipeline = build_pipeline(Sampling(temperature=0.9, options=options))
    assert len(pipeline.policies) == len(options) + 1
    state = pipeline.start(Context(prompt, 64, frozenset({7, 9})))
    tokens = out.sequences[0, len(prompt) :].tolist()
    for token, raw, processed in zip(tokens, out.logits, out.scores, strict=True):
        torch.testing.assert_close(pipeline.transform(raw, [state]), processed)
        assert 1 < processed.isfinite().sum() < 40
        state = pipeline.settle(pipeline.advance(state, token))
