"""Capabilities are data: check a combination of parts at the door, with a reason when it cannot work.

Each part says what it needs and what it offers; `plan` compares. Nothing in the engine asks a part what it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from paceline import registry
from paceline.drafters.base import Drafter
from paceline.errors import Unsupported
from paceline.policies.base import Pipeline
from paceline.registry import Guarantee
from paceline.verifiers.base import Verifier

#: What the words mean, for messages.
CAPABILITIES = {
    "chain": "drafts that form a single chain",
    "tree": "several drafted tokens after one prefix (tree attention)",
    "draft_law": "the distribution that draft tokens were drawn from",
    "density": "a model whose tokens are vectors with a density",
    "hidden_states": "hidden states of the target's layers",
    "views": "a model whose attention and feed-forward sub-blocks can be left out one by one",
    "low_bits": "a model of the Llama family on a CPU that multiplies matrices of few bits",
    "embeddings": "embeddings of the tokens, or a table of each token's neighbours",
    "placeholder": "a token that stands for one not yet known, which the model was trained to answer",
    "second_model": "a second model that drafts",
    "tokenizers": "the tokenizers of both models",
    "datastore": "a datastore of texts (`paceline datastore build`)",
    "prediction": "a request that says what it expects to be written (`prediction=`)",
}


#: How a drafted token relates to its siblings' and to the draft's distribution q at its prefix.
LAWS = {
    "shared": "picked with the noise that the verifier itself uses",
    "distinct": "drawn without replacement: each from q without its earlier siblings, renormalised, in draw order",
    "exhaustive": "drawn without replacement, and where q has no token left uniformly from those not drawn yet",
    "replacement": "drawn independently from q, siblings with multiplicity",
    "chains": "whole chains drawn independently from the root on, not merged",
    "top": "the most likely ones, and last one drawn outside them",
    "fixed": "not drawn",
}


@dataclass(frozen=True)
class Plan:
    """A combination that works.

    Attributes:
        guarantee: the weakest of its parts.
        lines: what happens, for people.
    """

    guarantee: Guarantee
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def plan(model: Any, drafter: Drafter, verifier: Verifier, pipeline: Pipeline) -> Plan:
    """Check a combination.

    Args:
        model: the target; `model.offers` names its capabilities.
        drafter, verifier, pipeline: what one request asked for.

    Raises:
        Unsupported: one sentence that says why not and what to do.
    """
    drafts, verifies = method_of(drafter), method_of(verifier)
    if drafter.shape not in verifier.shapes:
        raise Unsupported(
            f"verifier {verifies.name!r} judges a {' or '.join(sorted(verifier.shapes))}, "
            f"but drafter {drafts.name!r} as configured drafts a {drafter.shape}; "
            f"choose verifier 'coupled', or a setting under which {drafts.name!r} drafts a chain"
        )
    if drafter.shape not in model.offers:
        raise Unsupported(
            f"{model.name} cannot score a {drafter.shape}, which drafter {drafts.name!r} drafts"
            f"{_because(model, drafter.shape)}; it offers: {', '.join(sorted(model.offers))}"
        )
    for part, name in _parts(drafter):
        found = _registration(part)
        needs = found.needs & {"hidden_states"} if found is not None else frozenset()
        if missing := needs - model.offers:
            wanted = ", ".join(CAPABILITIES[need] for need in sorted(missing))
            raise Unsupported(f"drafter {name!r} needs {wanted}, which {model.name} does not offer")
        agreed(part, verifier)
    choice = "greedy" if pipeline.greedy else "sampled"
    if choice not in verifier.choices:
        raise Unsupported(
            f"verifier {verifies.name!r} judges {' or '.join(sorted(verifier.choices))} decoding only, and this is "
            f"{choice}; set the temperature accordingly or choose verifier 'coupled'"
        )
    guarantee = _weakest(*(part.guarantee for part in (drafts, verifies, *_views(model))))
    return Plan(guarantee, _describe(model, drafts, verifies, drafter, verifier, pipeline))


def agreed(drafter: Drafter, verifier: Verifier) -> str:
    """The law (a key of `LAWS`) that the drafter's tokens follow: the verifier's favourite of those on offer.

    Raises:
        Unsupported: the drafter offers none that the verifier can judge.
    """
    law = next((law for law in verifier.judges if law in drafter.drafts), None)
    if law is None:
        raise Unsupported(
            f"verifier {_name(verifier)!r} judges tokens that are {_list(verifier.judges)}; drafter {_name(drafter)!r} "
            f"drafts tokens that are {_list(sorted(drafter.drafts))}; choose verifier 'coupled' or another drafter"
        )
    return law


def _because(model: Any, capability: str) -> str:
    reason = model.lacks.get(capability)
    return f": {reason}" if reason else ""


def _list(laws: Iterable[str]) -> str:
    return " or ".join(LAWS[law] for law in laws)


def _parts(drafter: Drafter, owner: str = "") -> Iterator[tuple[Drafter, str]]:
    """A drafter and all that it consists of, with their names; what has none of its own bears its owner's."""
    found = _registration(drafter)
    name = owner or type(drafter).__name__ if found is None else found.name
    yield drafter, name
    for member in drafter.members:
        yield from _parts(member, name)


def _name(part: object) -> str:
    found = _registration(part)
    return type(part).__name__ if found is None else found.name


def method_of(part: object) -> registry.Method:
    """The registration of a part's class. Raises `Unsupported` for an unregistered class."""
    found = _registration(part)
    if found is None:
        raise Unsupported(f"{type(part).__name__} is not a registered method; decorate its class with @method")
    return found


def _registration(part: object) -> registry.Method | None:
    return next((found for found in registry.methods() if type(part) is found.cls), None)


def _views(model: Any) -> list[registry.Method]:
    """The lossy view that the model follows, if any."""
    rule = getattr(model, "rule", None)
    return [] if rule is None else [method_of(rule)]


def _weakest(*guarantees: Guarantee) -> Guarantee:
    order = [Guarantee.LOSSLESS, Guarantee.GREEDY, Guarantee.LOSSY]
    return max(guarantees, key=order.index)


def _drafting(drafter: Drafter, verifier: Verifier, pipeline: Pipeline) -> str:
    """What it drafts; of what consists of others, they say what they draw."""
    tokens = LAWS["fixed" if pipeline.greedy else agreed(drafter, verifier)]
    return f"Drafts a {drafter.shape}" + ("." if drafter.members else f" of tokens that are {tokens}.")


def _describe(
    model: Any,
    drafts: registry.Method,
    verifies: registry.Method,
    drafter: Drafter,
    verifier: Verifier,
    pipeline: Pipeline,
) -> tuple[str, ...]:
    policies = " -> ".join(repr(p) for p in pipeline.policies) or "the model's own distribution"
    choice = "the most likely token (greedy)" if pipeline.greedy else "a draw from that distribution"
    views = _views(model)
    parts = (*views, verifies, drafts)
    weakest = _weakest(*(part.guarantee for part in parts))
    law = {
        Guarantee.LOSSLESS: "lossless: the text has exactly the policy's distribution",
        Guarantee.GREEDY: "greedy: exact for greedy decoding",
        Guarantee.LOSSY: f"lossy: bounded by {' and '.join(part.knob for part in parts if part.knob)}",
    }[weakest]
    if verifier.judges[0] == "shared" and weakest is Guarantee.LOSSLESS:
        law += "; the same seed gives the same text under every drafter, tree and batch"
    return (
        f"target    {model.name}",
        *(f"view      {model.rule}: {view.summary}" for view in views),
        f"policy    {policies}, then {choice}",
        f"drafter   {drafts.name}: {drafts.summary} {_drafting(drafter, verifier, pipeline)}",
        *(
            f"          {name}: {_drafting(part, verifier, pipeline)}"
            for part, name in itertools.islice(_parts(drafter), 1, None)
        ),
        f"verifier  {verifies.name}: {verifies.summary}",
        f"guarantee {law}",
    )
