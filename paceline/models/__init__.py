"""Models: Hugging Face modules behind one adapter."""

from paceline.models.causal import CausalModel
from paceline.models.loading import load_model
from paceline.models.nodes import Scores

__all__ = ["CausalModel", "Scores", "load_model"]
