"""Shapes of a draft model's token tree, one file a method."""

from paceline.trees.base import StaticTree, Tree
from paceline.trees.growth import Growth

__all__ = ["Growth", "StaticTree", "Tree"]
