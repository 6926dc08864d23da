"""Decoders turn requests into events."""

from paceline.decoders.tree import TreeDecoder

__all__ = ["TreeDecoder"]
