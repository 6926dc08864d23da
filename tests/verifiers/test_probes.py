"""A probe is scored and never accepted, by any verifier that judges trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paceline import registry
from paceline.chance import SeededChance
from paceline.testing import TabularModel, random_table
from paceline.testing.methods import VERIFIERS
from paceline.tree import TokenTree
from paceline.verifiers.base import Verifier

TREES = [
    spec
    for spec in VERIFIERS
    if "tree" in registry.build("verifier", spec).shapes
    and not registry.find("verifier", spec.split("(")[0]).needs & {"placeholder", "embeddings"}
]


@pytest.mark.parametrize("spec", TREES)
def test_a_probe_is_not_accepted(spec: str) -> None:
    """Token 1 is certain everywhere, and both children of the root carry it."""
    verifier: Verifier = registry.build("verifier", spec)
    verifier.attach(TabularModel(random_table(4), 4))
    law = torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf]).expand(4, 4)
    tokens, parents = np.array([0, 1, 1, 1]), np.array([-1, 0, 0, 2])
    for probe, path in (([0, 1, 1, 1], [0]), ([0, 1, 0, 0], [0, 2, 3])):
        tree = TokenTree(tokens, parents, probe=np.array(probe, bool))
        verdict = verifier.verify(tree, law, SeededChance(0, 0), 0)
        assert verdict.bonus == 1
        if "synthetic" not in spec:
            assert verdict.path == path
        assert not tree.probe[verdict.path].any()
