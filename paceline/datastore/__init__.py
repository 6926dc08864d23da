"""Texts on disk that drafters search: token ids and their sorted suffixes, memory-mapped."""

from paceline.datastore.build import build
from paceline.datastore.fingerprint import fingerprint
from paceline.datastore.store import Datastore

__all__ = ["Datastore", "build", "fingerprint"]
