"""Every test runs on one thread with fixed examples, so that a result repeats."""

from __future__ import annotations

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=30)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices are fastest on one thread."""
    torch.set_num_threads(1)
