"""The cross-product: every drafter, verifier and policy, alone and in batches, greedy and sampled, with and without
stop strings and log-probabilities. Each cell works, or is refused by name.

Works: under the coupled verifier, and greedily under every verifier, the result is that of plain decoding with the
same seed, log-probabilities included. Under another verifier sampled text is another draw of the same law (see
`tests/exact`); here it runs to its end, within the policy.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from models.architectures import VOCABULARY, build
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paceline import Engine, registry
from paceline.errors import Unsupported
from paceline.models.costs import PassCosts
from paceline.requests import Result
from paceline.specs import parse
from paceline.testing.methods import DRAFTERS, LAWLESS, POLICIES, RELAXED, VECTORS, VERIFIERS, filled, one_each

NEW, SEED, END = 8, 5, 60
#: Verifiers under which sampled text, too, is that of plain decoding with the same seed.
SAME = ("coupled", "synthetic(rate=0)", "lexical(beta=2)")
PROMPTS = [[7], [5, 9, 5, 9, 5], [(3 * i) % 50 + 2 for i in range(23)]]
CHOICES: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": {"temperature": 0.9, "seed": SEED}}
EXTRAS: dict[str, dict[str, Any]] = {"bare": {}, "stop and logprobs": {"logprobs": 2, "echo": True}}
TREE = "judges a chain, but drafter {} as configured drafts a tree; choose verifier 'coupled', or a setting under which"
#: Drafters that draft trees and verifiers that judge chains; their cells are refused, with these words.
BRANCHING = (
    "ngram(candidates=4, confidence=0)",
    "draft(model='{draft}', tree=dyspec(threshold=0.05), budget=7)",
    "draft(model='{draft}', tree=rsd_s(width=2))",
    "rasd(draft=draft(model='{draft}', tree=dyspec(threshold=0.1)))",
    "rasd(draft=draft(model='{draft}', tree=rsd_s(width=2)), retrieve=recycling, top=2, nodes=3)",
    "merged(draft(model='{draft}', confidence=0), ngram)",
    "merged(draft(model='{draft}', tree=rsd_c('2 1'), budget=3), draft(model='{draft}', length=2, confidence=0.3))",
    "suffix",
    "recycling",
    "lookahead",
    "lookahead(window=2, ngram=3, guesses=1, pool_from_prompt=false, accept_window=false)",
    "turns(ngram(min_ngram=2), recycling, least=2)",
    "rest('{datastore}', shortest=1)",
    "rest('{datastore}', shortest=1, longest=2, confidence=0, nodes=9, hits=3, length=4)",
    "aded",
    "aded(datastore='{datastore}', adapt=tail, iterations=20, length=2, nodes=7)",
    "swift(skip=0.3, confidence=0, length=4, tries=0, siblings=true)",
    "auto(draft=draft(model='{draft}'), table=recycling)",
)
CHAINS_ONLY = tuple(
    spec for spec in VERIFIERS if parse(spec).name in ("rejection", "block", "lenient", "bild", "rapid", "top_beta")
)
#: Verifiers that must know the laws of drafted tokens, and the drafters that can tell them.
INFORMED = tuple(spec for spec in VERIFIERS if parse(spec).name == "rapid")
TELLING = ("draft", "pearl", "sjd", "quantised", "early_exit", "self_speculative", "swift", "del", "easyspec", "rapid")
#: The verifier under which each drafter meets every policy, alone and in batches; the others see only what policies
#: make of the scores, and meet the busiest one.
THOROUGH = "coupled"
#: Every refused cell of drafter x verifier. All others work.
REFUSED: dict[tuple[str, str], str] = {
    (spec, verifier): "drafts tokens that are not drawn"
    for spec in DRAFTERS
    for verifier in INFORMED
    if parse(spec).name not in TELLING
} | {(spec, verifier): TREE.format(repr(parse(spec).name)) for spec in BRANCHING for verifier in CHAINS_ONLY}
REFUSED |= {(spec, verifier): "tokens are vectors with a density" for spec in DRAFTERS for verifier in VECTORS}


def target() -> Any:
    """A tiny Llama; its first layer alone is the draft model, whose guesses are sometimes right."""
    module = build("LlamaConfig", {"eos_token_id": END, "initializer_range": 0.4, "num_hidden_layers": 4})
    with torch.no_grad():  # what further layers add is small
        for layer in module.model.layers[1:]:
            layer.self_attn.o_proj.weight *= 0.6
            layer.mlp.down_proj.weight *= 0.6
    return module


def tokenizer() -> PreTrainedTokenizerFast:
    """Every token is one or two letters, so that stop strings straddle tokens."""
    letters = [chr(97 + i % 7) + ("" if i % 3 else chr(104 + i % 5)) + str(i) for i in range(VOCABULARY)]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(letters)}, unk_token=letters[0]))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+\d+"), "isolated")
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=letters[END])


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine.load(target(), tokenizer=tokenizer(), drafter="none", max_rows=2, nodes=7, fast=True)
    engine.model.costs = PassCosts({1: 1.0, 32: 2.0})  # made up: what is chosen by them is the same in every run
    return engine


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("draft")
    small = build("LlamaConfig", {"eos_token_id": END, "num_hidden_layers": 1})
    small.load_state_dict({k: v for k, v in target().state_dict().items() if k in small.state_dict()})
    small.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@cache
def plain(engine: Engine, policy: str, choice: str, extra: str) -> list[Result]:
    """Each prompt alone, one token a pass."""
    settings = options(engine, policy, choice, extra)
    return [engine.generate(prompt, drafter="none", verifier="coupled", **settings) for prompt in PROMPTS]


@cache
def stops(engine: Engine, policy: str, choice: str) -> tuple[str, ...]:
    """A string that straddles two tokens of the first text, and one that never comes."""
    text = engine.generate(PROMPTS[0], drafter="none", **POLICIES[policy], **CHOICES[choice], max_new_tokens=NEW).text
    return text[len(text) // 2 - 2 : len(text) // 2 + 2], "never"


def options(engine: Engine, policy: str, choice: str, extra: str) -> dict[str, Any]:
    chosen = {**POLICIES[policy], **CHOICES[choice], **EXTRAS[extra], "max_new_tokens": NEW}
    return chosen | ({"stop": stops(engine, policy, choice)} if extra != "bare" else {})


def numbers(result: Result) -> list[float]:
    entries = (result.logprobs or []) + (result.prompt_logprobs or [])
    return [x for e in entries for x in (e.logprob, e.policy_logprob, *(p for _, p in e.top + e.policy_top))]


def check_equal(result: Result, wanted: Result) -> None:
    assert (result.tokens, result.text) == (wanted.tokens, wanted.text)
    assert (result.finish_reason, result.stop_reason) == (wanted.finish_reason, wanted.stop_reason)
    assert numbers(result) == pytest.approx(numbers(wanted), abs=1e-4)


def check_runs(result: Result, policy: str) -> None:
    """A whole text within the policy."""
    assert result.error is None
    assert result.finish_reason in ("length", "stop")
    assert len(result.tokens) == NEW or result.finish_reason == "stop"
    assert all(0 <= token < VOCABULARY for token in result.tokens)
    allowed = POLICIES[policy].get("allowed_tokens")
    assert allowed is None or set(result.tokens) <= set(allowed)  # type: ignore[call-overload]
    assert not set(result.tokens) & set(POLICIES[policy].get("banned_tokens", ()))  # type: ignore[call-overload]


def cells() -> list[tuple[str, str, str]]:
    """First settings of drafters and verifiers meet all there is; other settings meet first ones alone."""
    first = {*one_each(DRAFTERS), *one_each(VERIFIERS)}
    pairs = [(d, v) for d in DRAFTERS for v in (*VERIFIERS, *VECTORS) if d in first or v in first]
    thorough = {(d, THOROUGH) for d in first}
    return [(*pair, policy) for pair in pairs for policy in (POLICIES if pair in thorough else ("all at once",))]


@pytest.mark.parametrize(("spec", "verifier", "policy"), cells())
def test_cell(engine: Engine, draft: str, spec: str, verifier: str, policy: str) -> None:
    drafter = filled(spec, draft)
    parts = {"drafter": drafter, "verifier": verifier}
    if (spec, verifier) in REFUSED:
        with pytest.raises(Unsupported, match=REFUSED[spec, verifier]):
            engine.generate(PROMPTS, **parts, **POLICIES[policy])
        return
    for choice in CHOICES:
        for extra in EXTRAS if verifier == THOROUGH else ("stop and logprobs",):
            settings = options(engine, policy, choice, extra)
            if choice not in registry.build("verifier", verifier).choices:
                with pytest.raises(Unsupported, match=f"decoding only, and this is {choice}"):
                    engine.generate(PROMPTS, **parts, **settings)
                continue
            results = engine.generate(PROMPTS, **parts, **settings)
            wanted = list(plain(engine, policy, choice, extra))
            if extra == "bare":
                results.append(engine.generate(PROMPTS[1], **parts, **settings))
                wanted.append(wanted[1])
            for result, expected in zip(results, wanted, strict=True):
                if verifier in SAME or (choice == "greedy" and verifier not in RELAXED):
                    check_equal(result, expected)
                elif verifier not in LAWLESS:
                    check_runs(result, policy)
                    entries = result.logprobs or []
                    # Greedily the policy's law is a point mass, which a relaxed verifier leaves.
                    assert choice == "greedy" or all(math.isfinite(entry.policy_logprob) for entry in entries)


@pytest.mark.parametrize(("kind", "listed"), [("drafter", DRAFTERS), ("verifier", (*VERIFIERS, *VECTORS))])
def test_every_registered_method_is_in_the_matrix(kind: str, listed: tuple[str, ...]) -> None:
    assert {parse(spec).name for spec in listed} == {method.name for method in registry.methods(kind)}


def test_every_registered_policy_is_in_the_matrix() -> None:
    listed = {argument for settings in POLICIES.values() for argument in settings} | {"temperature"}
    assert listed == {method.argument for method in registry.methods("policy")}


def test_the_matrix_is_not_empty(engine: Engine, draft: str) -> None:
    """Stop strings are met, drafts accepted and refused, texts of different settings different."""
    met = [plain(engine, policy, choice, "stop and logprobs")[0] for policy in POLICIES for choice in CHOICES]
    assert all(result.stop_reason not in (None, "never") for result in met)
    texts = {tuple(r.text for r in plain(engine, policy, "sampled", "bare")) for policy in POLICIES}
    assert len(texts) > 6
    for spec in DRAFTERS[1:]:
        drafter = filled(spec, draft)
        stats = [r.stats for r in engine.generate(PROMPTS, drafter=drafter, max_new_tokens=40, ignore_eos=True)]
        assert 0 < sum(s.accepted for s in stats) < sum(s.drafted for s in stats), spec
