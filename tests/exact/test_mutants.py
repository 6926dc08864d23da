"""The comparison has teeth: a verifier with one thing wrong is caught by it.

Each mutant is the production source with one expression replaced, so that a proof that passes for the original
is known to look at that expression.
"""

from __future__ import annotations

import inspect
import sys
import textwrap

import pytest

from exact.cases import CHAINS, LENGTH, PROMPT, TREES, engine_of
from paceline.policies.base import Pipeline
from paceline.testing import autoregressive, decoded, distance
from paceline.verifiers import Verifier
from paceline.verifiers.coupled import Coupled
from paceline.verifiers.rejection import Rejection

SAMPLED = Pipeline((), greedy=False)
ENGINE = engine_of()
WANTED = autoregressive(ENGINE.model, SAMPLED, PROMPT, LENGTH)
MATCHED = ("none", "fixed chain", "repeating chain", "fixed tree with twins")


def mutant(cls: type[Verifier], method: str, old: str, new: str) -> Verifier:
    """An instance of a verifier whose method has one expression replaced."""
    function = getattr(cls, method)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {cls.__name__}.{method}"
    scope = dict(vars(sys.modules[function.__module__]))
    exec(source.replace(old, new), scope)
    return type(cls.__name__, (cls,), {method: scope[method]})()


REJECTION = {
    "residual with the wrong sign": ("(p - q).clamp_min(0)", "(q - p).clamp_min(0)"),
    "no residual": ("(p - q).clamp_min(0)", "p.clone()"),
    "ratio upside down": ("p[token] / q[token]", "q[token] / p[token]"),
    "always accepts": ("p[token] / q[token]", "p[token] / p[token]"),
    "takes a drawn token for a fixed one": (
        "_draft_law(tree, node, len(p))",
        "_draft_law(TokenTree.chain(0, tree.tokens[1:]), node, len(p))",
    ),
    "judges by the row of the token itself": ("logp[node - 1]", "logp[node]"),
    "judges every token by the first row": ("logp[node - 1]", "logp[0]"),
    "bonus from the wrong row": ("logp[len(tree) - 1]", "logp[0]"),
    "one number for all acceptances": ('at, "accept"', 'position, "accept"'),
    "one number for all steps": ('at, "accept"', '0, "accept"'),
    "the bonus reuses the residual's number": ('"bonus"', '"residual"'),
}
#: No error: no run draws both a residual and a bonus at one position; and a token drawn without a look at the
#: target may be judged as if it had been fixed, which only accepts less often.
HARMLESS = {"the bonus reuses the residual's number", "takes a drawn token for a fixed one"}
MATCH = {
    "noise of one position for all": ("choose", "positions[a:b]", "[0] * (b - a)"),
    "noise shared by neighbouring positions": ("choose", "positions[a:b]", "[t // 2 for t in positions[a:b]]"),
    "no noise": ("choose", "chance.couple(scores[a:b], positions[a:b])", "scores[a:b].argmax(-1)"),
    "bonus from the wrong row": ("walk", "int(chosen[node])", "int(chosen[path[len(path) // 2]])"),
    "bonus always from the root": ("walk", "int(chosen[node])", "int(chosen[0])"),
    "takes the first child": ("walk", "if tree.tokens[c] == chosen[node]", "if True"),
    "takes any child but the right one": ("walk", "tree.tokens[c] == chosen[node]", "tree.tokens[c] != chosen[node]"),
    "compares with the root's choice": ("walk", "tree.tokens[c] == chosen[node]", "tree.tokens[c] == chosen[0]"),
}


def worst(verifier: Verifier, names: tuple[str, ...]) -> float:
    """The largest error over drafters that between them exercise every line."""
    drafters = {**CHAINS, **TREES}
    return max(
        distance(decoded(ENGINE, PROMPT, LENGTH, drafters[name], verifier, SAMPLED).law, WANTED) for name in names
    )


@pytest.mark.parametrize("name", REJECTION)
def test_a_wrong_rejection_is_caught(name: str) -> None:
    error = worst(mutant(Rejection, "verify", *REJECTION[name]), ("fixed chain", "drawn"))
    assert error < 1e-9 if name in HARMLESS else error > 1e-3


@pytest.mark.parametrize("name", MATCH)
def test_a_wrong_coupling_is_caught(name: str) -> None:
    assert worst(mutant(Coupled, *MATCH[name]), MATCHED) > 1e-3


def test_the_originals_pass_the_same_comparison() -> None:
    assert worst(Rejection(), ("fixed chain", "drawn")) < 1e-9
    assert worst(Coupled(), MATCHED) < 1e-9
