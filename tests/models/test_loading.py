"""Which dtype a model gets where none is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from paceline.errors import BadRequest
from paceline.models import loading
from paceline.models.loading import pick_dtype

CPU = torch.device("cpu")


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, multiplies: bool, widens: bool | None) -> None:
    """One that multiplies bfloat16 itself or not, with native kernels that widen it or do not, or without any."""
    library = SimpleNamespace(widened_available=lambda: int(bool(widens)))
    monkeypatch.setattr(loading, "kernels", lambda: None if widens is None else SimpleNamespace(library=library))
    monkeypatch.setattr(loading, "_cpu_flags", lambda: ["avx512_bf16"] if multiplies else ["avx2", "fma"])
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: multiplies)


@pytest.mark.parametrize(
    ("multiplies", "widens", "packed", "half"),
    [
        (True, None, False, True),
        (False, None, True, False),
        (False, False, True, False),
        (False, True, True, True),
        (False, True, False, False),
    ],
)
def test_bfloat16_is_the_default_where_it_is_fast(
    multiplies: bool, widens: bool | None, packed: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_cpu(monkeypatch, multiplies, widens)
    assert pick_dtype(None, CPU, packed) == (torch.bfloat16 if half else torch.float32)
    assert pick_dtype("float64", CPU, packed) == torch.float64


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(BadRequest, match="'float8' is unknown; float32, bfloat16"):
        pick_dtype("float8", CPU)
