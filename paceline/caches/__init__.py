"""Key-value caches."""

from paceline.caches.trie import Extension, Row, TrieCache

__all__ = ["Extension", "Row", "TrieCache"]
