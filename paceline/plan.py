"""Capabilities are data: check a combination of parts at the door, with a reason when it cannot work.

Each part says what it needs and what it offers; `plan` compares. Nothing in the engine asks a part what it is.
"""

from __future__ import annotations

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
    "hidden_states": "hidden states of the target's layers",
    "second_model": "a second model with the same vocabulary",
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
            f"{model.name} cannot score a {drafter.shape}, which drafter {drafts.name!r} drafts; "
            f"it offers: {', '.join(sorted(model.offers))}"
        )
    missing = {need for need in drafts.needs if need in ("hidden_states",)} - model.offers
    if missing:
        wanted = ", ".join(CAPABILITIES[need] for need in sorted(missing))
        raise Unsupported(f"drafter {drafts.name!r} needs {wanted}, which {model.name} does not offer")
    guarantee = _weakest(drafts.guarantee, verifies.guarantee)
    return Plan(guarantee, _describe(model, drafts, verifies, drafter, verifier, pipeline))


def method_of(part: object) -> registry.Method:
    """The registration of a part's class. Raises `Unsupported` for an unregistered class."""
    for found in registry.methods():
        if type(part) is found.cls:
            return found
    raise Unsupported(f"{type(part).__name__} is not a registered method; decorate its class with @method")


def _weakest(*guarantees: Guarantee) -> Guarantee:
    order = [Guarantee.LOSSLESS, Guarantee.GREEDY, Guarantee.LOSSY]
    return max(guarantees, key=order.index)


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
    weakest = _weakest(drafts.guarantee, verifies.guarantee)
    law = {
        Guarantee.LOSSLESS: "lossless: the text has exactly the policy's distribution",
        Guarantee.GREEDY: "greedy: exact for greedy decoding",
        Guarantee.LOSSY: f"lossy: bounded by {verifies.knob or drafts.knob}",
    }[weakest]
    if verifier.drawing == "coupled" and weakest is Guarantee.LOSSLESS:
        law += "; the same seed gives the same text under every drafter, tree and batch"
    return (
        f"target    {model.name}",
        f"policy    {policies}, then {choice}",
        f"drafter   {drafts.name}: {drafts.summary} Drafts a {drafter.shape}.",
        f"verifier  {verifies.name}: {verifies.summary}",
        f"guarantee {law}",
    )
