"""What `generate` and `Engine.load` refuse, before any model runs: each message names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline import Engine
from paceline.errors import BadRequest
from paceline.testing import TabularModel, random_table


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("pocket-code", drafter="none", max_rows=1)


@pytest.mark.parametrize(
    "prompt",
    [
        *(None, 5, b"x", [], [[]], [1, "a"], [None], {"a": 1}, [1.5], [True], [-1], [10**9], "", ["a", ""], [[1], []]),
        *("def \ud800", np.array([1.5]), torch.tensor(3), torch.zeros(2, 2, 2, dtype=torch.int64)),
    ],
    ids=repr,
)
def test_prompts(engine: Engine, prompt: Any) -> None:
    with pytest.raises(BadRequest, match=r"^prompt: "):
        engine.generate(prompt)


@pytest.mark.parametrize("prompt", [None, 5, b"x", {"a": 1}], ids=repr)
def test_a_single_request_refuses_what_is_no_prompt(engine: Engine, prompt: Any) -> None:
    with pytest.raises(BadRequest, match=r"^prompt: "):
        engine.request(prompt)


def test_arrays_and_tensors_of_ids_are_prompts(engine: Engine) -> None:
    ids = [5, 9, 17]
    wanted = engine.generate(ids, max_new_tokens=3).tokens
    for same in (np.array(ids), torch.tensor(ids), [np.int64(i) for i in ids]):
        assert engine.generate(same, max_new_tokens=3).tokens == wanted
    for several in (np.array([ids, ids]), torch.tensor([ids, ids]), [np.array(ids), ids]):
        assert [r.tokens for r in engine.generate(several, max_new_tokens=3)] == [wanted, wanted]


def test_integers_may_be_numpys(engine: Engine) -> None:
    chosen = {"max_new_tokens": 5, "seed": 7, "stop_token_ids": [3], "banned_tokens": [4]}
    wanted = engine.generate("def", temperature=1.0, logprobs=1, **chosen)
    numbers = {name: np.array(value) if isinstance(value, list) else np.int64(value) for name, value in chosen.items()}
    found = engine.generate("def", temperature=1.0, logprobs=np.int32(1), **numbers)
    assert (found.tokens, found.logprobs) == (wanted.tokens, wanted.logprobs)


def test_stop_strings_need_a_tokenizer(engine: Engine) -> None:
    bare = Engine(engine.model, None, drafter="none", max_rows=1)
    with pytest.raises(BadRequest, match=r"^stop: strings need a tokenizer"):
        bare.generate([1, 2], stop="x")


@pytest.mark.parametrize("name", ["banned_tokens", "allowed_tokens"])
def test_policies_are_asked_about_the_vocabulary_before_anything_runs(engine: Engine, name: str) -> None:
    with pytest.raises(BadRequest, match=f"^{name}: token id 1000000 is outside the vocabulary"):
        engine.generate(["a", "b"], **{name: [10**6]})


def test_specs_name_token_ids_with_spaces_between(engine: Engine) -> None:
    first = engine.generate("def", max_new_tokens=1).tokens[0]
    spec, argument = {"policies": [f"banned('3 {first}')"]}, {"banned_tokens": [3, first]}
    found = engine.generate("def", max_new_tokens=4, **spec).tokens
    assert found == engine.generate("def", max_new_tokens=4, **argument).tokens
    assert found[0] != first


WRONG: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": (0, -1, 1.5, "3", None, True),
    "temperature": (-1, float("nan"), float("inf"), 1e-300, 10**400, "1", None, True),
    "seed": (-1, 1.5, None, 2**63),
    "n": (0, 1.5, None, True),
    "stop": (3, ["a", 3], [""], b"x", {"a"}),
    "stop_token_ids": (3, ["a"], [-1], [10**9], None, "ab"),
    "logprobs": (-1, 1.5, True, "a"),
    "echo": (1, "x", None),
    "ignore_eos": (1, "x"),
    "top_p": (0, 2, "a", float("nan"), True, 10**400),
    "min_new_tokens": (-1, 0.5, "3", 2**63),
    "repetition_penalty": (0, "1", 1e-300, 10**400),
    "prediction": (5, [0.5], [10**9]),
    "drafter": (5, "nope", object()),
    "verifier": (5, "nope"),
    "policies": (3,),
    "callback": (5, "print"),
    "tempreature": (1,),
    "options": ({"top_p": 0.9},),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_arguments(engine: Engine, name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=name):
        engine.generate("x", **{name: value})


def test_near_misses_are_named_once(engine: Engine) -> None:
    with pytest.raises(BadRequest) as refusal:
        engine.generate("x", tempreature=1)
    assert "did you mean 'temperature'?" in str(refusal.value)


@pytest.mark.parametrize("sampling", [{"n": 2}, "greedy"])
def test_settings_of_the_wrong_type(engine: Engine, sampling: Any) -> None:
    with pytest.raises(BadRequest, match=r"^sampling: "):
        engine.generate("x", sampling)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_rows", 0),
        ("nodes", -1),
        ("dtype", "float8"),
        ("dtype", 5),
        ("dtype", []),
        ("device", 0.5),
        ("inflated", []),
        ("trust_remote_code", "false"),
        ("allow_pickle", 1),
        ("fast", "no"),
        ("device", "meta"),
        ("tokenizer", 5),
        ("tokenizer", "/nowhere"),
        ("drafter", 5),
        ("verifier", 5),
        ("view", 5),
        ("inflated", "huge"),
    ],
)
def test_loading(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"^{name}: "):
        Engine.load("pocket-code", **{name: value})


@pytest.mark.parametrize(
    "spec",
    [
        "ngram(length={})",
        "recycling(nodes={})",
        "lookahead(nodes={})",
        "jacobi(block={})",
        "sjd(block={})",
        "ceed(block={})",
        "lexical(pads={})",
        "copyspec(copy={})",
        "draft(length={})",
        "draft(tree=dyspec, length={})",
        "draft(tree=dyspec, budget={})",
        "rapid(length={})",
        "easyspec(length={})",
        "pearl(length={})",
        "rasd(nodes={})",
        "aded(nodes={})",
        "translate(length={})",
        "early_exit(length={})",
        "del(length={})",
        "swift(length={})",
        "quantised(length={})",
        "turns(ngram, recycling(nodes={}))",
    ],
)
def test_a_draft_larger_than_the_context_is_refused(engine: Engine, spec: str) -> None:
    """The message names both numbers; what fits is allowed, though it is cut near the end of a text."""
    most = engine.model.context
    for tokens in (most + 1, 10**9):
        with pytest.raises(BadRequest, match=rf"={tokens}\): too many to draft; the context of .* is {most} tokens"):
            engine.request("x", drafter=spec.format(tokens))
    engine.request("x", drafter=spec.format(most))


def test_a_window_larger_than_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest, match=r"lookahead\(window=1000, ngram=5\): too many to draft"):
        engine.request("x", drafter="lookahead(window=1000)")
    engine.request("x", drafter="lookahead(window=200)")


def test_more_nodes_than_the_context_are_refused(engine: Engine) -> None:
    most = engine.model.context
    for nodes in (most + 1, 10**9):
        with pytest.raises(BadRequest, match=f"^nodes: {nodes}: too many to draft; .* is {most} tokens"):
            Engine(engine.model, engine.tokenizer, nodes=nodes)
    assert Engine(engine.model, engine.tokenizer, drafter="none", nodes=most).decoder.nodes == most


def test_defaults_suit_models_of_a_short_context() -> None:
    model = TabularModel(random_table(8), 8, context=12)
    for spec in ("ngram", "recycling", "lookahead", "jacobi", "auto(draft=none)", "copyspec"):
        assert Engine(model, drafter=spec).generate([1, 2], max_new_tokens=20).finish_reason == "length"


@pytest.mark.parametrize("model", [5, None, [], object()])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(BadRequest, match=r"^model: "):
        Engine.load(model)
