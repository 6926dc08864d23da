"""Errors a user can cause or meet. Each message is one sentence that names what to change."""

from __future__ import annotations


class PacelineError(Exception):
    """Base of every error raised on purpose."""


class BadRequest(PacelineError, ValueError):
    """An argument is out of range or unknown; the message names argument, value and what is allowed."""


class Unsupported(PacelineError):
    """A combination of parts, or a model, that cannot work; the message says why."""


class ModelError(PacelineError):
    """A model cannot be loaded, or produced something unusable (non-finite logits)."""


class OutOfMemory(PacelineError, MemoryError):
    """The cache could not grow."""


NON_FINITE = "{}: the model returned non-finite logits (NaN or infinity); its weights or dtype are unusable"
