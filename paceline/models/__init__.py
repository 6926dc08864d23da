"""Models: Hugging Face modules behind one adapter."""

from paceline.models.causal import CausalModel, Scores

__all__ = ["CausalModel", "Scores"]
