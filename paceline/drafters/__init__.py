"""Drafters, one file a method."""

from paceline.drafters.base import Drafter, Outcome, SequenceDrafter

__all__ = ["Drafter", "Outcome", "SequenceDrafter"]
