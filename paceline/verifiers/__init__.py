"""Verifiers, one file a method."""

from paceline.verifiers.base import MatchVerifier, Verdict, Verifier

__all__ = ["MatchVerifier", "Verdict", "Verifier"]
