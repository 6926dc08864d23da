"""Tools to prove that a method is right: tabular models, enumerated chance, exact laws, test drafters."""

from paceline.testing.enumerate import EnumeratedChance, Enumeration, outcomes
from paceline.testing.laws import Decoded, autoregressive, decoded, distance
from paceline.testing.tabular import TabularModel, allowing, random_table

__all__ = [
    "Decoded",
    "EnumeratedChance",
    "Enumeration",
    "TabularModel",
    "allowing",
    "autoregressive",
    "decoded",
    "distance",
    "outcomes",
    "random_table",
]
