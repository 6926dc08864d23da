"""Key-value caches."""

from paceline.caches.rows import Extension, Row
from paceline.caches.trie import TrieCache

__all__ = ["Extension", "Row", "TrieCache"]
