"""Paceline: one decoding engine for generative sequence models."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from paceline.api import Engine
    from paceline.requests import Event, Result, Sampling

__all__ = ["Engine", "Event", "Result", "Sampling", "__version__"]


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import; `paceline --help` should not wait for them.
    if name == "Engine":
        from paceline.api import Engine

        return Engine
    if name in ("Event", "Result", "Sampling"):
        from paceline import requests

        return getattr(requests, name)
    raise AttributeError(f"module 'paceline' has no attribute {name!r}")
