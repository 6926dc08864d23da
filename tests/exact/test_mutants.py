"""The comparison has teeth: a verifier with one thing wrong is caught by it.

Each mutant is the production source with one expression replaced, so that a proof that passes for the original
is known to look at that expression.
"""

from __future__ import annotations

import inspect
import sys
import textwrap

import pytest

from exact.cases import DRAFTERS, LENGTH, PROMPT, VERIFIERS, engine_of
from paceline import registry
from paceline.policies.base import Pipeline
from paceline.testing import autoregressive, decoded, distance
from paceline.verifiers import Verifier

SAMPLED = Pipeline((), greedy=False)
ENGINE = engine_of()
WANTED = autoregressive(ENGINE.model, SAMPLED, PROMPT, LENGTH)
#: Drafters that between them exercise every line of a verifier.
THOROUGH = {
    "rejection": ("fixed chain", "drawn"),
    "coupled": ("none", "fixed chain", "repeating chain", "fixed tree with twins"),
}


def mutant(cls: type[Verifier], method: str, old: str, new: str) -> Verifier:
    """An instance of a verifier whose method, its own or one it has from a function, has one expression replaced."""
    function = getattr(cls, method)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {cls.__name__}.{method}"
    scope = dict(vars(sys.modules[function.__module__]))
    exec(source.replace(old, new), scope)
    changed = scope[function.__name__]
    static = isinstance(inspect.getattr_static(cls, method), staticmethod)
    return type(cls.__name__, (cls,), {method: staticmethod(changed) if static else changed})()


#: Of `sequential_rejection` and the walk around it.
SIBLINGS: dict[str, tuple[str, str, str]] = {
    "residual with the wrong sign": ("choose", "(rest - law).clamp_min(0)", "(law - rest).clamp_min(0)"),
    "no residual": ("choose", "(rest - law).clamp_min(0)", "rest.clone()"),
    "ratio upside down": ("choose", "float(rest[token]) / proposed", "proposed / max(float(rest[token]), 1e-9)"),
    "always accepts": ("choose", "flip(float(rest[token]) / proposed, i)", "True"),
    "a fixed token stays in the residual": ("choose", "without(rest, token)", "rest.clone()"),
    "takes a drawn token for a fixed one": (
        "choose",
        "token, law = sibling.token, sibling.law",
        "token, law = sibling.token, None",
    ),
    "judges by the row of the root": ("verify", "laws.target(node)", "laws.target(0)"),
    "one number for all acceptances": ("verify", "Coins(chance, at)", "Coins(chance, position)"),
    "one number for all steps": ("verify", "Coins(chance, at)", "Coins(chance, 0)"),
    "bonus from the root's row": ("verify", "chance.categorical(rest, at", "chance.categorical(laws.target(0), at"),
    "bonus from the whole law": ("verify", "chance.categorical(rest, at", "chance.categorical(laws.target(node), at"),
}
MUTANTS: dict[str, dict[str, tuple[str, str, str]]] = {
    "rejection": SIBLINGS,
    "coupled": {
        "noise of one position for all": ("choose", "positions[a:b]", "[0] * (b - a)"),
        "noise shared by neighbouring positions": ("choose", "positions[a:b]", "[t // 2 for t in positions[a:b]]"),
        "no noise": ("choose", "chance.couple(scores[a:b], positions[a:b])", "scores[a:b].argmax(-1)"),
        "bonus from the wrong row": ("walk", "int(chosen[node])", "int(chosen[path[len(path) // 2]])"),
        "bonus always from the root": ("walk", "int(chosen[node])", "int(chosen[0])"),
        "takes the first child": ("walk", "if tree.tokens[c] == chosen[node]", "if True"),
        "takes only wrong children": ("walk", "tree.tokens[c] == chosen[node]", "tree.tokens[c] != chosen[node]"),
        "compares with the root's choice": ("walk", "tree.tokens[c] == chosen[node]", "tree.tokens[c] == chosen[0]"),
    },
}
#: No error: a token drawn without a look at the target may be judged as if it had been fixed, which only accepts less
#: often.
HARMLESS = {"takes a drawn token for a fixed one"}


def worst(verifier: Verifier, names: tuple[str, ...]) -> float:
    """The largest error over some drafters."""
    laws = [decoded(ENGINE, PROMPT, LENGTH, DRAFTERS[name], verifier, SAMPLED).law for name in names]
    return max(distance(law, WANTED) for law in laws)


@pytest.mark.parametrize(("verifier", "name"), [(v, name) for v, mutants in MUTANTS.items() for name in mutants])
def test_a_mutant_is_caught(verifier: str, name: str) -> None:
    error = worst(mutant(type(VERIFIERS[verifier]), *MUTANTS[verifier][name]), THOROUGH[verifier])
    assert error < 1e-9 if name in HARMLESS else error > 1e-3


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_original_passes_the_same_comparison(verifier: str) -> None:
    assert worst(VERIFIERS[verifier], THOROUGH[verifier]) < 1e-9


def test_every_verifier_has_mutants() -> None:
    assert MUTANTS.keys() == VERIFIERS.keys() == {method.name for method in registry.methods("verifier")}
