"""Which tokenizer some token ids come from."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(tokenizer: Any) -> str:
    """A hash of all tokens and their ids, as 16 hexadecimal digits.

    Texts of equal fingerprint mean the same by the same ids; whether both tokenizers cut a text alike (the order of
    merges, normalisation) is not looked at: a difference there costs acceptance, never correctness.

    Args:
        tokenizer: a tokenizer of transformers.
    """
    words = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
