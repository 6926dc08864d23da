"""What is left of a drafter where there is no memory for models that draft."""

from __future__ import annotations

from paceline.drafters.base import Drafter
from paceline.drafters.none import NoDraft
from paceline.errors import Unsupported
from paceline.plan import agreed
from paceline.verifiers.base import Verifier


def without_second(drafter: Drafter, verifier: Verifier) -> Drafter:
    """The first of its members that keeps no text in a model of its own and suits the verifier; else no drafts."""
    for member in drafter.members:
        if member.second or member.shape not in verifier.shapes:
            continue
        try:
            agreed(member, verifier)
        except Unsupported:
            continue
        return member
    return NoDraft()
