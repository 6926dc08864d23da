"""Models: Hugging Face modules behind one adapter."""

from paceline.models.causal import CausalModel, Scores
from paceline.models.loading import load_model

__all__ = ["CausalModel", "Scores", "load_model"]
