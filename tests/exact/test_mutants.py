"""The comparison has teeth: a verifier with one thing wrong is caught by it.

Each mutant is the production source with one expression replaced, so that a proof that passes for the original (in
`test_trees` and `test_lossless`, on these drafts and others) is known to look at that expression.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator

import pytest

from exact.cases import DRAFTERS, LENGTH, PROMPT, VERIFIERS, engine_of
from exact.shapes import SHAPES
from paceline import registry
from paceline.policies.base import Pipeline
from paceline.testing import autoregressive, decoded, distance
from paceline.verifiers import Verifier

SAMPLED = Pipeline((), greedy=False)
ENGINE = engine_of()
WANTED = autoregressive(ENGINE.model, SAMPLED, PROMPT, LENGTH)
#: Drafters that between them exercise every line of a verifier of chains; trees are judged in one step.
THOROUGH = {
    "rejection": ("fixed chain", "drawn"),
    "coupled": ("none", "fixed chain", "repeating chain", "fixed tree with twins"),
    "block": ("fixed chain", "drawn"),
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


Mutants = dict[str, tuple[str, str, str]]
#: Of `sequential_rejection` and the walk around it, for one child a node.
CHAINS: Mutants = {
    "residual with the wrong sign": ("choose", "(rest - law).clamp_min(0)", "(law - rest).clamp_min(0)"),
    "no residual": ("choose", "(rest - law).clamp_min(0)", "rest.clone()"),
    "ratio upside down": ("choose", "float(rest[token]) / proposed", "proposed / max(float(rest[token]), 1e-9)"),
    "always accepts": ("choose", "flip(float(rest[token]) / proposed, i)", "True"),
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
#: Where tokens are not drawn.
POINTS: Mutants = {
    "a fixed token stays in the residual": ("choose", "without(rest, token)", "rest.clone()"),
}
#: For several children a node, on several levels.
TREES: Mutants = {
    "judges by the row of the root": CHAINS["judges by the row of the root"],
    "bonus from the root's row": CHAINS["bonus from the root's row"],
    "bonus from the whole law": CHAINS["bonus from the whole law"],
    "one number for all acceptances": CHAINS["one number for all acceptances"],
    "goes on below the first sibling": ("verify", "node = siblings[index].node", "node = siblings[0].node"),
    "no residual": CHAINS["no residual"],
    "residual with the wrong sign": CHAINS["residual with the wrong sign"],
    "one number for all siblings": ("choose", "/ proposed, i)", "/ proposed, 0)"),
    "residual of the first sibling for all": ("choose", "rest = left / mass", "rest = rest if i else left / mass"),
    "residual not normalised": ("choose", "rest = left / mass", "rest = left"),
}
MUTANTS: dict[str, Mutants] = {
    "rejection": CHAINS | POINTS,
    "specinfer": TREES,
    "recursive": TREES | {"tries the last drawn first": ("candidates", "return siblings", "return siblings[::-1]")},
    "sequoia": TREES,
    "optimal": TREES | POINTS,
    "spectr": {
        "no division factor": ("next_token", "terms.rho * draft[token]", "draft[token]"),
        "division factor of one draw": (
            "next_token",
            "selection(target, draft, len(drawn))",
            "selection(target, draft, 1)",
        ),
        "division factor larger than needed": (
            "next_token",
            "selection(target, draft, len(drawn))",
            "selection(target, draft, len(drawn), float(len(drawn)))",
        ),
        "no residual": ("next_token", "rest = terms.residual", "rest = target"),
        "one number for all draws": ("next_token", "draft[token])), i)", "draft[token])), 0)"),
        "judges by the row of the root": ("verify", "laws.target(alive[0])", "laws.target(0)"),
        "one number for all depths": ("verify", "chance, at)", "chance, position)"),
    },
    "block": {
        "keeps the shortest": ("verify", "range(n, 0, -1)", "range(1, n + 1)"),
        "chance of the prefix alone": (
            "verify",
            "self.chance_of(float(residuals[i].sum()), prefix) if i < n else prefix",
            "prefix",
        ),
        "chance of one token alone": ("verify", "min(1.0, prefix * float", "min(1.0, 1.0 * float"),
        "one number for all prefixes": ("verify", "position + i - 1, (", "position, ("),
        "one number for all steps": ("verify", '("block", position)', '"block"'),
        "residual of one token alone": ("residual", "prefix * target - drafted", "target - drafted"),
        "residual with the wrong sign": ("residual", "prefix * target - drafted", "drafted - prefix * target"),
        "no residual": ("residual", "(prefix * target - drafted)", "target.clone()"),
        "judges by the row of the token itself": ("verify", "laws.target(i - 1)", "laws.target(i)"),
        "always keeps a prefix that is sure": ("chance_of", "mass / whole", "prefix"),
    },
    "coupled": {
        "noise of one position for all": ("choose", "(scores, positions)", "(scores, [0] * len(positions))"),
        "noise shared by neighbouring positions": (
            "choose",
            "(scores, positions)",
            "(scores, [t // 2 for t in positions])",
        ),
        "no noise": ("choose", "chance.couple(scores, positions)", "scores.argmax(-1)"),
        "bonus from the wrong row": ("walk", "int(chosen[node])", "int(chosen[path[len(path) // 2]])"),
        "bonus always from the root": ("walk", "int(chosen[node])", "int(chosen[0])"),
        "takes the first child": ("walk", "if tree.tokens[c] == chosen[node]", "if True"),
        "takes only wrong children": ("walk", "tree.tokens[c] == chosen[node]", "tree.tokens[c] != chosen[node]"),
        "compares with the root's choice": ("walk", "tree.tokens[c] == chosen[node]", "tree.tokens[c] == chosen[0]"),
    },
}
#: No error: a token drawn without a look at the target may be judged as if it had been fixed, and a larger division
#: factor be taken; either only accepts less often.
HARMLESS = {"takes a drawn token for a fixed one", "division factor larger than needed"}


def errors(name: str, verifier: Verifier) -> Iterator[float]:
    """Of one step over drawn trees, cheap ones first; then of whole texts."""
    for shape in SHAPES[name][:3]:
        yield shape.judged_by(verifier).error
    for drafter in THOROUGH.get(name, ()):
        yield distance(decoded(ENGINE, PROMPT, LENGTH, DRAFTERS[drafter], verifier, SAMPLED).law, WANTED)


@pytest.mark.filterwarnings("ignore:invalid value")  # some draw from nothing
@pytest.mark.parametrize(("verifier", "name"), [(v, name) for v, mutants in MUTANTS.items() for name in mutants])
def test_a_mutant_is_caught(verifier: str, name: str) -> None:
    found = errors(verifier, mutant(type(VERIFIERS[verifier]), *MUTANTS[verifier][name]))
    assert max(found) < 1e-10 if name in HARMLESS else any(error > 1e-3 for error in found)


def test_every_lossless_verifier_has_mutants() -> None:
    lossless = {m.name for m in registry.methods("verifier") if m.guarantee is registry.Guarantee.LOSSLESS}
    assert MUTANTS.keys() == VERIFIERS.keys() == lossless
