"""Policies, one file a method."""

from paceline.policies.base import Context, Pipeline, Policy, Stage, State

__all__ = ["Context", "Pipeline", "Policy", "Stage", "State"]
