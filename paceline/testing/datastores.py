"""A small datastore for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.datastore import build


def small(folder: str | Path, vocabulary: int = 32) -> str:
    """The folder of a datastore of random texts and of runs of every token; built when it is first asked for.

    Args:
        folder: where it is, or will be.
        vocabulary: ids are below it.
    """
    if not Path(folder).exists():
        random = np.random.default_rng(0).integers(0, vocabulary, (40, 100))
        runs = np.arange(vocabulary)[:, None].repeat(8, axis=1)
        build(folder, [*random, *runs], vocabulary)
    return str(folder)
